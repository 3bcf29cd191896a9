drop function refill_rate_limits, unblock_successors;
