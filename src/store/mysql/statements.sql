-- Written and checked by `UPDATE_SQL=1 cargo test --features full --lib statements`.

-- load
/*M! SET STATEMENT innodb_lock_wait_timeout = LEAST(@@innodb_lock_wait_timeout, 4), lock_wait_timeout = LEAST(@@lock_wait_timeout, 4) FOR */ SELECT session, workspace, agent, build, generation, address, previous_agent, previous_generation, revision, epoch,
         COALESCE((SELECT `agent_bindings_epochs`.epoch FROM `agent_bindings_epochs` WHERE `agent_bindings_epochs`.workspace = `agent_bindings`.workspace), 0)
             AS workspace_epoch FROM `agent_bindings` WHERE session = ? AND workspace IS NOT NULL;

-- claim
/*M! SET STATEMENT innodb_lock_wait_timeout = LEAST(@@innodb_lock_wait_timeout, 4), lock_wait_timeout = LEAST(@@lock_wait_timeout, 4) FOR */ INSERT INTO `agent_bindings` (session, revision, deleted_at) VALUES (?, (SELECT revision_floor FROM `agent_bindings_meta`), 0)
                 ON DUPLICATE KEY UPDATE session = `agent_bindings`.session;

-- fill
/*M! SET STATEMENT innodb_lock_wait_timeout = LEAST(@@innodb_lock_wait_timeout, 4), lock_wait_timeout = LEAST(@@lock_wait_timeout, 4) FOR */ UPDATE `agent_bindings` SET workspace = ?, agent = ?, build = ?, generation = ?, address = ?,
                     epoch = ?, revision = revision + 1, deleted_at = NULL, created_at = ?
                 WHERE session = ? AND workspace IS NULL;

-- compare_and_swap
/*M! SET STATEMENT innodb_lock_wait_timeout = LEAST(@@innodb_lock_wait_timeout, 4), lock_wait_timeout = LEAST(@@lock_wait_timeout, 4) FOR */ UPDATE `agent_bindings` SET previous_generation =
                     CASE WHEN agent IS NOT NULL AND NOT (agent <=> ?) THEN generation ELSE previous_generation END,
                 previous_agent = CASE WHEN agent IS NOT NULL AND NOT (agent <=> ?) THEN agent ELSE previous_agent END,
                     address = ?, build = ?, generation = ?, agent = ?, epoch = ?, workspace = ?,
                     revision = revision + 1
                 WHERE session = ? AND revision = ? AND workspace IS NOT NULL;

-- retarget
/*M! SET STATEMENT innodb_lock_wait_timeout = LEAST(@@innodb_lock_wait_timeout, 4), lock_wait_timeout = LEAST(@@lock_wait_timeout, 4) FOR */ INSERT INTO `agent_bindings` (session, workspace, revision, created_at) VALUES (?, ?, (SELECT revision_floor FROM `agent_bindings_meta`) + 1, ?)
                 ON DUPLICATE KEY UPDATE previous_generation =
                     CASE WHEN agent IS NOT NULL AND NOT (workspace <=> ?) THEN generation ELSE previous_generation END,
                 previous_agent = CASE WHEN agent IS NOT NULL AND NOT (workspace <=> ?) THEN agent ELSE previous_agent END,
                     address = CASE WHEN workspace <=> ? THEN address END, build = CASE WHEN workspace <=> ? THEN build END, generation = CASE WHEN workspace <=> ? THEN generation END, agent = CASE WHEN workspace <=> ? THEN agent END,
                     created_at = CASE WHEN workspace IS NULL THEN ? ELSE `agent_bindings`.created_at END,
                     workspace = ?, revision = `agent_bindings`.revision + 1, deleted_at = NULL;

-- retarget_in
INSERT INTO `agent_bindings` (session, workspace, revision, created_at) VALUES (?, ?, (SELECT revision_floor FROM `agent_bindings_meta`) + 1, ?)
                 ON DUPLICATE KEY UPDATE previous_generation =
                     CASE WHEN agent IS NOT NULL AND NOT (workspace <=> ?) THEN generation ELSE previous_generation END,
                 previous_agent = CASE WHEN agent IS NOT NULL AND NOT (workspace <=> ?) THEN agent ELSE previous_agent END,
                     address = CASE WHEN workspace <=> ? THEN address END, build = CASE WHEN workspace <=> ? THEN build END, generation = CASE WHEN workspace <=> ? THEN generation END, agent = CASE WHEN workspace <=> ? THEN agent END,
                     created_at = CASE WHEN workspace IS NULL THEN ? ELSE `agent_bindings`.created_at END,
                     workspace = ?, revision = `agent_bindings`.revision + 1, deleted_at = NULL;

-- unbind
/*M! SET STATEMENT innodb_lock_wait_timeout = LEAST(@@innodb_lock_wait_timeout, 4), lock_wait_timeout = LEAST(@@lock_wait_timeout, 4) FOR */ UPDATE `agent_bindings` SET previous_generation =
                     CASE WHEN agent IS NOT NULL AND TRUE THEN generation ELSE previous_generation END,
                 previous_agent = CASE WHEN agent IS NOT NULL AND TRUE THEN agent ELSE previous_agent END, address = NULL, build = NULL, generation = NULL, agent = NULL, revision = revision + 1
                 WHERE session = ? AND workspace IS NOT NULL;

-- delete
/*M! SET STATEMENT innodb_lock_wait_timeout = LEAST(@@innodb_lock_wait_timeout, 4), lock_wait_timeout = LEAST(@@lock_wait_timeout, 4) FOR */ UPDATE `agent_bindings` SET previous_generation =
                     CASE WHEN agent IS NOT NULL AND TRUE THEN generation ELSE previous_generation END,
                 previous_agent = CASE WHEN agent IS NOT NULL AND TRUE THEN agent ELSE previous_agent END, address = NULL, build = NULL, generation = NULL, agent = NULL, workspace = NULL, revision = revision + 1, deleted_at = ?,
                     last_used = NULL
                 WHERE session = ? AND workspace IS NOT NULL AND (? IS NULL OR revision = ?);

-- inherit
/*M! SET STATEMENT innodb_lock_wait_timeout = LEAST(@@innodb_lock_wait_timeout, 4), lock_wait_timeout = LEAST(@@lock_wait_timeout, 4) FOR */ UPDATE `agent_bindings` AS child JOIN `agent_bindings` AS parent ON parent.session = ?
                 SET child.workspace = parent.workspace, child.agent = parent.agent, child.build = parent.build,
                     child.generation = parent.generation, child.address = parent.address, child.epoch = parent.epoch,
                     child.revision = child.revision + 1, child.deleted_at = NULL, child.created_at = ?
                 WHERE child.session = ? AND child.workspace IS NULL AND parent.workspace IS NOT NULL;

-- raise_epoch
/*M! SET STATEMENT innodb_lock_wait_timeout = LEAST(@@innodb_lock_wait_timeout, 4), lock_wait_timeout = LEAST(@@lock_wait_timeout, 4) FOR */ INSERT INTO `agent_bindings_epochs` (workspace, epoch) VALUES (?, 1)
                 ON DUPLICATE KEY UPDATE epoch = `agent_bindings_epochs`.epoch + 1;

-- epoch
SELECT epoch FROM `agent_bindings_epochs` WHERE workspace = ?;

-- drop_targets
/*M! SET STATEMENT innodb_lock_wait_timeout = LEAST(@@innodb_lock_wait_timeout, 4), lock_wait_timeout = LEAST(@@lock_wait_timeout, 4) FOR */ UPDATE `agent_bindings` SET previous_generation =
                     CASE WHEN agent IS NOT NULL AND TRUE THEN generation ELSE previous_generation END,
                 previous_agent = CASE WHEN agent IS NOT NULL AND TRUE THEN agent ELSE previous_agent END, address = NULL, build = NULL, generation = NULL, agent = NULL, revision = revision + 1 WHERE workspace = ?;

-- replace_replace_older, choose
SELECT session FROM `agent_bindings` IGNORE INDEX (PRIMARY) WHERE workspace = ? AND epoch = ? AND generation < ?
                 ORDER BY session LIMIT ? FOR UPDATE SKIP LOCKED;

-- replace_replace_older, write
UPDATE `agent_bindings` FORCE INDEX (PRIMARY) SET previous_generation =
                     CASE WHEN agent IS NOT NULL AND NOT (agent <=> ?) THEN generation ELSE previous_generation END,
                 previous_agent = CASE WHEN agent IS NOT NULL AND NOT (agent <=> ?) THEN agent ELSE previous_agent END, address = ?, build = ?, generation = ?, agent = ?, revision = revision + 1 WHERE workspace = ? AND epoch = ? AND generation < ? AND session IN (sessions);

-- replace_replace_older, behind
SELECT session FROM `agent_bindings` IGNORE INDEX (PRIMARY) WHERE workspace = ? AND epoch = ? AND generation < ? ORDER BY session LIMIT 1;

-- replace_agent, choose
SELECT session FROM `agent_bindings` IGNORE INDEX (PRIMARY) WHERE workspace = ? AND epoch = ? AND agent = ? AND generation IS NULL AND NOT (agent = ? AND address <=> ?)
                 ORDER BY session LIMIT ? FOR UPDATE SKIP LOCKED;

-- replace_agent, write
UPDATE `agent_bindings` FORCE INDEX (PRIMARY) SET previous_generation =
                     CASE WHEN agent IS NOT NULL AND NOT (agent <=> ?) THEN generation ELSE previous_generation END,
                 previous_agent = CASE WHEN agent IS NOT NULL AND NOT (agent <=> ?) THEN agent ELSE previous_agent END, address = ?, build = ?, generation = ?, agent = ?, revision = revision + 1 WHERE workspace = ? AND epoch = ? AND agent = ? AND generation IS NULL AND NOT (agent = ? AND address <=> ?) AND session IN (sessions);

-- replace_agent, behind
SELECT session FROM `agent_bindings` IGNORE INDEX (PRIMARY) WHERE workspace = ? AND epoch = ? AND agent = ? AND generation IS NULL AND NOT (agent = ? AND address <=> ?) ORDER BY session LIMIT 1;

-- load_many
/*M! SET STATEMENT innodb_lock_wait_timeout = LEAST(@@innodb_lock_wait_timeout, 4), lock_wait_timeout = LEAST(@@lock_wait_timeout, 4) FOR */ SELECT session, workspace, agent, build, generation, address, previous_agent, previous_generation, revision, epoch,
         COALESCE((SELECT `agent_bindings_epochs`.epoch FROM `agent_bindings_epochs` WHERE `agent_bindings_epochs`.workspace = `agent_bindings`.workspace), 0)
             AS workspace_epoch FROM `agent_bindings` WHERE workspace IS NOT NULL AND session IN (sessions);

-- recent
SELECT session, workspace, agent, build, generation, address, previous_agent, previous_generation, revision, epoch,
         COALESCE((SELECT `agent_bindings_epochs`.epoch FROM `agent_bindings_epochs` WHERE `agent_bindings_epochs`.workspace = `agent_bindings`.workspace), 0)
             AS workspace_epoch FROM `agent_bindings` WHERE workspace IS NOT NULL ORDER BY last_used DESC LIMIT ?;

-- meta
SELECT revision_floor, floor_raised_at, use_recorded_since, use_recorded_until, use_recorded_gap FROM `agent_bindings_meta` WHERE id = 1;

-- mark_used, choose
SELECT session FROM `agent_bindings` FORCE INDEX (PRIMARY) WHERE workspace IS NOT NULL AND (last_used IS NULL OR last_used < ?) AND session IN (sessions)
                     ORDER BY session LIMIT ? FOR UPDATE SKIP LOCKED;

-- mark_used, write
UPDATE `agent_bindings` FORCE INDEX (PRIMARY) SET last_used = ? WHERE workspace IS NOT NULL AND (last_used IS NULL OR last_used < ?) AND session IN (sessions);

-- mark_recorded
/*M! SET STATEMENT innodb_lock_wait_timeout = LEAST(@@innodb_lock_wait_timeout, 4), lock_wait_timeout = LEAST(@@lock_wait_timeout, 4) FOR */ UPDATE `agent_bindings_meta` SET
                     use_recorded_since = CASE
                         WHEN use_recorded_until >= ? AND use_recorded_since IS NOT NULL THEN use_recorded_since
                         ELSE ? END,
                     use_recorded_until = ?, use_recorded_gap = ?
                 WHERE id = 1;

-- delete_idle, choose
SELECT session FROM `agent_bindings` IGNORE INDEX (PRIMARY) WHERE workspace IS NOT NULL AND last_used < ?
                 ORDER BY last_used LIMIT ? FOR UPDATE SKIP LOCKED;

-- delete_idle, write
UPDATE `agent_bindings` FORCE INDEX (PRIMARY) SET previous_generation =
                     CASE WHEN agent IS NOT NULL AND TRUE THEN generation ELSE previous_generation END,
                 previous_agent = CASE WHEN agent IS NOT NULL AND TRUE THEN agent ELSE previous_agent END, address = NULL, build = NULL, generation = NULL, agent = NULL, workspace = NULL, revision = revision + 1, deleted_at = ?, last_used = NULL WHERE workspace IS NOT NULL AND last_used < ? AND session IN (sessions);

-- delete_unused, choose
SELECT session FROM `agent_bindings` IGNORE INDEX (PRIMARY) WHERE workspace IS NOT NULL AND last_used IS NULL AND created_at < ?
                 ORDER BY created_at LIMIT ? FOR UPDATE SKIP LOCKED;

-- delete_unused, write
UPDATE `agent_bindings` FORCE INDEX (PRIMARY) SET previous_generation =
                     CASE WHEN agent IS NOT NULL AND TRUE THEN generation ELSE previous_generation END,
                 previous_agent = CASE WHEN agent IS NOT NULL AND TRUE THEN agent ELSE previous_agent END, address = NULL, build = NULL, generation = NULL, agent = NULL, workspace = NULL, revision = revision + 1, deleted_at = ?, last_used = NULL WHERE workspace IS NOT NULL AND last_used IS NULL AND created_at < ? AND session IN (sessions);

-- remove_deleted, choose
SELECT session FROM `agent_bindings` IGNORE INDEX (PRIMARY) WHERE workspace IS NULL AND deleted_at < ? AND revision <= ?
                 ORDER BY deleted_at LIMIT ? FOR UPDATE SKIP LOCKED;

-- remove_deleted, write
DELETE FROM `agent_bindings` WHERE deleted_at + 0 < ? AND revision <= ? AND session IN (sessions);

-- deleted_before
SELECT count(*), max(revision) FROM `agent_bindings` WHERE deleted_at < ?;

-- raise_floor
/*M! SET STATEMENT innodb_lock_wait_timeout = LEAST(@@innodb_lock_wait_timeout, 4), lock_wait_timeout = LEAST(@@lock_wait_timeout, 4) FOR */ UPDATE `agent_bindings_meta` SET revision_floor = ?, floor_raised_at = ?
                 WHERE id = 1 AND revision_floor < ? AND (floor_raised_at IS NULL OR floor_raised_at <= ?);
