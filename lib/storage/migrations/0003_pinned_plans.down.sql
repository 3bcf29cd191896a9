drop function claim_jobs, complete_jobs, end_attempts, free_queues, refuse_stale_claim;
