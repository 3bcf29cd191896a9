drop function add_keyed_jobs;
