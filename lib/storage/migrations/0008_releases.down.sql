alter table job_queues drop column release, drop column declared_at;
alter table crontabs drop column release, drop column content, drop column retired_at;
drop table releases;
