-- Runs in one transaction with search_path set to the library's schema. Safe while workers of earlier versions run: every
-- new column may be empty, and means then that nobody knows which release has declared the row.

-- Releases that have declared crontabs or queues, and the pools that run them. Of two that declare different things, the
-- one that was seen first is the older one, whichever process of it started last.
create table releases (
  -- A digest of what the release declares.
  id text not null,
  first_seen_at timestamptz not null default clock_timestamp(),
  joined_at timestamptz not null default clock_timestamp(),
  worker_ids text[] not null default '{}',
  constraint releases_pkey primary key (id)
);

alter table crontabs add column release text;
-- A digest of what was declared: payloads may be encrypted and cannot be compared.
alter table crontabs add column content text;
-- When the last release that declared it was gone. It fires no more, but comes back as it was within a day.
alter table crontabs add column retired_at timestamptz;

alter table job_queues add column release text;
-- When a process declared it last, to the day; null: none ever has.
alter table job_queues add column declared_at timestamptz;
