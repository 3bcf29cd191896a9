drop function add_job, limits_text, are_limits, add_jobs, add_alike_jobs, add_keyed_jobs, add_windowed_jobs, missing_limits, prune_windows, bound_queue, before_turn, queue_bounds, waiting_in, refuse_if_full, heartbeat, fault_of_add, new_job_id, audit_claims, cancel_jobs, check_claims, claim_lane_jobs, claim_next_in_lane, claim_plain_jobs, claimed_head, claimed_lane_extra,
  claimed_lane_text, claims_of_the_dead,
  complete_and_claim, complete_jobs, declare_queue, drop_body_partition, drop_history_partition, due_in_lane, edit_queue, edit_partition, end_attempts,
  end_incarnations, expired_leases, find_passed_over, forget_bodies, lanes_freed_of_dead_places, prune_bodies, prune_history, save_progress, save_step, extra_of, extra_of_body, family_of, circle_pairs, heir_of, held_by, holders_of, is_key_taken, successor_of, waits_for, peel_pairs, find_untold, first_id_at, free_keys, free_places, free_stale_keys, free_successors, give_back_places, give_places, hold_settle_tables, hold_tables, is_holder, lane_of,
  limits_now, list_rate_limits, list_values_of_limit, limits_of, lock_of_limit, lock_of_tokens, tokens_of, tokens_for, try_tokens, take_tokens, state_after, enough_at, refused_limits, list_partitions, free_in_partition, lock_claims, make_partition, next_plain_priority, next_priority_of_lanes, may_change, pauses_of_claim, pause_target, resume_target, pauses_in_force, claims_under_way, is_in_force, move_places_from, old_body_partitions, partitions_of, place_in_walk, places_of, put_rate_limit, refill_rate_limits,
  refuse_stale_claim, register_queues, room_in_lane, room_in_partition, see_tasks, standing_of_claims, tell_children, end_of_parent, time_of_id, unknown_claims, unknown_claims_anywhere, wanted_ids,
  bulk_matches, bulk_page, bulk_slice, lock_bulk_jobs, move_jobs, take_bulk_action, set_back_times, set_back_states, worker_is_alive;
drop table job_pauses, job_bulk_actions, releases, crontabs, job_logs, job_progress, job_steps, job_dependencies, claims_in_question, duties, workers,
  rate_limit_blocks, rate_limit_states, rate_limits, job_tasks, job_places, job_partitions, job_queues, settle_receipts, job_history, job_replacements, job_keys,
  job_windows,
  jobs, job_bodies;
drop function lock_named, keep_times_storable, know_limits_of_partitions, storable;
drop sequence job_place_numbers;
drop type job_outcome, claim_pauses;
