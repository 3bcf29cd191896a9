alter function add_keyed_jobs reset enable_partition_pruning;
alter function claim_jobs reset enable_partition_pruning;
drop function drop_body_partition, old_body_partitions, wanted_ids, drop_history_partition, make_partition, partitions_of,
  first_id_at, time_of_id;
