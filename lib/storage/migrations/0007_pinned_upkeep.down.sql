drop function resolve_dependents, refill_rate_limits, unblock_successors;
