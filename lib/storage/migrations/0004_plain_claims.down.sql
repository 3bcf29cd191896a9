drop function claim_plain_jobs;
