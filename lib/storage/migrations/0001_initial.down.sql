drop table workers, rate_limits, job_tasks, job_queues, settle_receipts, job_history, jobs, job_bodies;
drop type job_outcome;
