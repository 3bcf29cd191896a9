drop function claim_jobs, complete_jobs, end_attempts, free_queues, held_claims, refuse_stale_claim;
