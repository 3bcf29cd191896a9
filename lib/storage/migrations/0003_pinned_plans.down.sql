drop function claim_jobs, complete_jobs, free_queues, refuse_stale_claim;
