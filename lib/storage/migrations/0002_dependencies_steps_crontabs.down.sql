alter table workers drop column leftovers;
drop table crontabs, job_logs, job_progress, job_steps, job_dependencies;
drop index jobs_to_cancel;
alter table jobs drop column unmet;
alter table job_bodies drop column on_parent_failure, drop column depends_on;
