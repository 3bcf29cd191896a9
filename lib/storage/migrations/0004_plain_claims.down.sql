drop function claim_plain_jobs;
alter function claim_jobs reset plan_cache_mode;
alter function held_claims reset plan_cache_mode;
alter function complete_jobs reset plan_cache_mode;
alter function free_queues reset plan_cache_mode;
alter function end_attempts reset plan_cache_mode;
