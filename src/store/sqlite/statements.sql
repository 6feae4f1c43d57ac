-- Written and checked by `UPDATE_SQL=1 cargo test --features full --lib statements`.

-- load
SELECT session, workspace, agent, build, generation, address, previous_agent, previous_generation, revision, epoch,
         COALESCE((SELECT "agent_bindings_epochs".epoch FROM "agent_bindings_epochs" WHERE "agent_bindings_epochs".workspace = "agent_bindings".workspace), 0)
             AS workspace_epoch FROM "agent_bindings" WHERE session = $1 AND workspace IS NOT NULL;

-- create
INSERT INTO "agent_bindings" (session, workspace, agent, build, generation, address, epoch, revision, created_at)
                 SELECT $1, $2, $3, $4, $5, $6, $7, (SELECT revision_floor FROM "agent_bindings_meta") + 1, $8 WHERE TRUE
                 ON CONFLICT (session) DO UPDATE SET
                 workspace = excluded.workspace, agent = excluded.agent, build = excluded.build,
                 generation = excluded.generation, address = excluded.address, epoch = excluded.epoch,
                 revision = "agent_bindings".revision + 1, deleted_at = NULL, created_at = excluded.created_at
             WHERE "agent_bindings".workspace IS NULL
                 RETURNING session, workspace, agent, build, generation, address, previous_agent, previous_generation, revision, epoch,
         COALESCE((SELECT "agent_bindings_epochs".epoch FROM "agent_bindings_epochs" WHERE "agent_bindings_epochs".workspace = "agent_bindings".workspace), 0)
             AS workspace_epoch;

-- compare_and_swap
UPDATE "agent_bindings" SET previous_agent = CASE WHEN "agent_bindings".agent IS NOT NULL AND $3 IS DISTINCT FROM agent
                     THEN "agent_bindings".agent ELSE "agent_bindings".previous_agent END,
                 previous_generation = CASE WHEN "agent_bindings".agent IS NOT NULL AND $3 IS DISTINCT FROM agent
                     THEN "agent_bindings".generation ELSE "agent_bindings".previous_generation END,
                     workspace = $2, agent = $3, build = $4, generation = $5, address = $6, epoch = $7,
                     revision = revision + 1
                 WHERE session = $1 AND revision = $8 AND workspace IS NOT NULL AND TRUE
                 RETURNING session, workspace, agent, build, generation, address, previous_agent, previous_generation, revision, epoch,
         COALESCE((SELECT "agent_bindings_epochs".epoch FROM "agent_bindings_epochs" WHERE "agent_bindings_epochs".workspace = "agent_bindings".workspace), 0)
             AS workspace_epoch;

-- retarget
INSERT INTO "agent_bindings" (session, workspace, revision, created_at)
                 SELECT $1, $2, (SELECT revision_floor FROM "agent_bindings_meta") + 1, $3 WHERE TRUE
                 ON CONFLICT (session) DO UPDATE SET previous_agent = CASE WHEN "agent_bindings".agent IS NOT NULL AND "agent_bindings".workspace IS DISTINCT FROM excluded.workspace
                     THEN "agent_bindings".agent ELSE "agent_bindings".previous_agent END,
                 previous_generation = CASE WHEN "agent_bindings".agent IS NOT NULL AND "agent_bindings".workspace IS DISTINCT FROM excluded.workspace
                     THEN "agent_bindings".generation ELSE "agent_bindings".previous_generation END,
                     agent = CASE WHEN "agent_bindings".workspace IS NOT DISTINCT FROM excluded.workspace THEN "agent_bindings".agent END, build = CASE WHEN "agent_bindings".workspace IS NOT DISTINCT FROM excluded.workspace THEN "agent_bindings".build END, generation = CASE WHEN "agent_bindings".workspace IS NOT DISTINCT FROM excluded.workspace THEN "agent_bindings".generation END, address = CASE WHEN "agent_bindings".workspace IS NOT DISTINCT FROM excluded.workspace THEN "agent_bindings".address END,
                     workspace = excluded.workspace, revision = "agent_bindings".revision + 1, deleted_at = NULL,
                     created_at =
                         CASE WHEN "agent_bindings".workspace IS NULL THEN excluded.created_at ELSE "agent_bindings".created_at END
                 RETURNING session, workspace, agent, build, generation, address, previous_agent, previous_generation, revision, epoch,
         COALESCE((SELECT "agent_bindings_epochs".epoch FROM "agent_bindings_epochs" WHERE "agent_bindings_epochs".workspace = "agent_bindings".workspace), 0)
             AS workspace_epoch;

-- retarget_in
INSERT INTO "agent_bindings" (session, workspace, revision, created_at)
                 SELECT $1, $2, (SELECT revision_floor FROM "agent_bindings_meta") + 1, $3 WHERE TRUE
                 ON CONFLICT (session) DO UPDATE SET previous_agent = CASE WHEN "agent_bindings".agent IS NOT NULL AND "agent_bindings".workspace IS DISTINCT FROM excluded.workspace
                     THEN "agent_bindings".agent ELSE "agent_bindings".previous_agent END,
                 previous_generation = CASE WHEN "agent_bindings".agent IS NOT NULL AND "agent_bindings".workspace IS DISTINCT FROM excluded.workspace
                     THEN "agent_bindings".generation ELSE "agent_bindings".previous_generation END,
                     agent = CASE WHEN "agent_bindings".workspace IS NOT DISTINCT FROM excluded.workspace THEN "agent_bindings".agent END, build = CASE WHEN "agent_bindings".workspace IS NOT DISTINCT FROM excluded.workspace THEN "agent_bindings".build END, generation = CASE WHEN "agent_bindings".workspace IS NOT DISTINCT FROM excluded.workspace THEN "agent_bindings".generation END, address = CASE WHEN "agent_bindings".workspace IS NOT DISTINCT FROM excluded.workspace THEN "agent_bindings".address END,
                     workspace = excluded.workspace, revision = "agent_bindings".revision + 1, deleted_at = NULL,
                     created_at =
                         CASE WHEN "agent_bindings".workspace IS NULL THEN excluded.created_at ELSE "agent_bindings".created_at END
                 RETURNING session, workspace, agent, build, generation, address, previous_agent, previous_generation, revision, epoch,
         COALESCE((SELECT "agent_bindings_epochs".epoch FROM "agent_bindings_epochs" WHERE "agent_bindings_epochs".workspace = "agent_bindings".workspace), 0)
             AS workspace_epoch;

-- unbind
UPDATE "agent_bindings" SET previous_agent = CASE WHEN "agent_bindings".agent IS NOT NULL AND TRUE
                     THEN "agent_bindings".agent ELSE "agent_bindings".previous_agent END,
                 previous_generation = CASE WHEN "agent_bindings".agent IS NOT NULL AND TRUE
                     THEN "agent_bindings".generation ELSE "agent_bindings".previous_generation END,
                     agent = NULL, build = NULL, generation = NULL, address = NULL, revision = revision + 1
                 WHERE session = $1 AND workspace IS NOT NULL AND TRUE
                 RETURNING session, workspace, agent, build, generation, address, previous_agent, previous_generation, revision, epoch,
         COALESCE((SELECT "agent_bindings_epochs".epoch FROM "agent_bindings_epochs" WHERE "agent_bindings_epochs".workspace = "agent_bindings".workspace), 0)
             AS workspace_epoch;

-- delete
UPDATE "agent_bindings" SET previous_agent = CASE WHEN "agent_bindings".agent IS NOT NULL AND TRUE
                     THEN "agent_bindings".agent ELSE "agent_bindings".previous_agent END,
                 previous_generation = CASE WHEN "agent_bindings".agent IS NOT NULL AND TRUE
                     THEN "agent_bindings".generation ELSE "agent_bindings".previous_generation END,
                     workspace = NULL, agent = NULL, build = NULL, generation = NULL, address = NULL,
                     revision = revision + 1, deleted_at = $3, last_used = NULL
                 WHERE session = $1 AND workspace IS NOT NULL AND ($2 IS NULL OR revision = $2) AND TRUE;

-- inherit
INSERT INTO "agent_bindings" (session, workspace, agent, build, generation, address, epoch, revision, created_at)
                 SELECT $1, parent.workspace, parent.agent, parent.build, parent.generation, parent.address,
                     parent.epoch, (SELECT revision_floor FROM "agent_bindings_meta") + 1, $3
                 FROM "agent_bindings" AS parent WHERE parent.session = $2 AND parent.workspace IS NOT NULL AND TRUE
                 ON CONFLICT (session) DO UPDATE SET
                 workspace = excluded.workspace, agent = excluded.agent, build = excluded.build,
                 generation = excluded.generation, address = excluded.address, epoch = excluded.epoch,
                 revision = "agent_bindings".revision + 1, deleted_at = NULL, created_at = excluded.created_at
             WHERE "agent_bindings".workspace IS NULL
                 RETURNING session, workspace, agent, build, generation, address, previous_agent, previous_generation, revision, epoch,
         COALESCE((SELECT "agent_bindings_epochs".epoch FROM "agent_bindings_epochs" WHERE "agent_bindings_epochs".workspace = "agent_bindings".workspace), 0)
             AS workspace_epoch;

-- pair
SELECT session, workspace, agent, build, generation, address, previous_agent, previous_generation, revision, epoch,
         COALESCE((SELECT "agent_bindings_epochs".epoch FROM "agent_bindings_epochs" WHERE "agent_bindings_epochs".workspace = "agent_bindings".workspace), 0)
             AS workspace_epoch FROM "agent_bindings" WHERE session IN ($1, $2) AND workspace IS NOT NULL;

-- raise_epoch
INSERT INTO "agent_bindings_epochs" (workspace, epoch) SELECT $1, 1 WHERE TRUE
             ON CONFLICT (workspace) DO UPDATE SET epoch = "agent_bindings_epochs".epoch + 1 RETURNING epoch;

-- drop_targets
UPDATE "agent_bindings" SET previous_agent = CASE WHEN "agent_bindings".agent IS NOT NULL AND TRUE
                     THEN "agent_bindings".agent ELSE "agent_bindings".previous_agent END,
                 previous_generation = CASE WHEN "agent_bindings".agent IS NOT NULL AND TRUE
                     THEN "agent_bindings".generation ELSE "agent_bindings".previous_generation END,
                 agent = NULL, build = NULL, generation = NULL, address = NULL, revision = revision + 1
             WHERE workspace = $1 ;

-- replace_older
UPDATE "agent_bindings" SET previous_agent = CASE WHEN "agent_bindings".agent IS NOT NULL AND $2 IS DISTINCT FROM agent
                     THEN "agent_bindings".agent ELSE "agent_bindings".previous_agent END,
                 previous_generation = CASE WHEN "agent_bindings".agent IS NOT NULL AND $2 IS DISTINCT FROM agent
                     THEN "agent_bindings".generation ELSE "agent_bindings".previous_generation END,
                     agent = $2, build = $3, generation = $4, address = $5, revision = revision + 1
                 WHERE session IN (SELECT session FROM "agent_bindings" WHERE workspace = $1 AND epoch = $6 AND generation < $4 ORDER BY session LIMIT $7) AND workspace = $1 AND epoch = $6 AND generation < $4;

-- replace_agent
UPDATE "agent_bindings" SET previous_agent = CASE WHEN "agent_bindings".agent IS NOT NULL AND $2 IS DISTINCT FROM agent
                     THEN "agent_bindings".agent ELSE "agent_bindings".previous_agent END,
                 previous_generation = CASE WHEN "agent_bindings".agent IS NOT NULL AND $2 IS DISTINCT FROM agent
                     THEN "agent_bindings".generation ELSE "agent_bindings".previous_generation END,
                     agent = $2, build = $3, generation = $4, address = $5, revision = revision + 1
                 WHERE session IN (SELECT session FROM "agent_bindings" WHERE workspace = $1 AND epoch = $6 AND agent = $8 AND generation IS NULL
                     AND NOT (agent = $2 AND address IS NOT DISTINCT FROM $5) ORDER BY session LIMIT $7) AND workspace = $1 AND epoch = $6 AND agent = $8 AND generation IS NULL
                     AND NOT (agent = $2 AND address IS NOT DISTINCT FROM $5);

-- load_many
SELECT session, workspace, agent, build, generation, address, previous_agent, previous_generation, revision, epoch,
         COALESCE((SELECT "agent_bindings_epochs".epoch FROM "agent_bindings_epochs" WHERE "agent_bindings_epochs".workspace = "agent_bindings".workspace), 0)
             AS workspace_epoch FROM "agent_bindings" WHERE workspace IS NOT NULL AND session IN (sessions);

-- recent
SELECT session, workspace, agent, build, generation, address, previous_agent, previous_generation, revision, epoch,
         COALESCE((SELECT "agent_bindings_epochs".epoch FROM "agent_bindings_epochs" WHERE "agent_bindings_epochs".workspace = "agent_bindings".workspace), 0)
             AS workspace_epoch FROM "agent_bindings" WHERE workspace IS NOT NULL ORDER BY last_used DESC NULLS LAST LIMIT $1;

-- meta
SELECT revision_floor, floor_raised_at, use_recorded_since, use_recorded_until, use_recorded_gap FROM "agent_bindings_meta" WHERE id = 1;

-- mark_used
UPDATE "agent_bindings" SET last_used = $1 WHERE workspace IS NOT NULL AND (last_used IS NULL OR last_used < $1) AND session IN (SELECT session FROM "agent_bindings" WHERE session IN (sessions) AND workspace IS NOT NULL AND (last_used IS NULL OR last_used < $1) ORDER BY session);

-- mark_recorded
UPDATE "agent_bindings_meta" SET
                     use_recorded_since = CASE
                         WHEN use_recorded_until >= $2 AND use_recorded_since IS NOT NULL THEN use_recorded_since
                         ELSE $1 END,
                     use_recorded_until = $1, use_recorded_gap = $3
                 WHERE id = 1 AND TRUE;

-- delete_idle
UPDATE "agent_bindings" SET previous_agent = CASE WHEN "agent_bindings".agent IS NOT NULL AND TRUE
                     THEN "agent_bindings".agent ELSE "agent_bindings".previous_agent END,
                 previous_generation = CASE WHEN "agent_bindings".agent IS NOT NULL AND TRUE
                     THEN "agent_bindings".generation ELSE "agent_bindings".previous_generation END,
                     workspace = NULL, agent = NULL, build = NULL, generation = NULL, address = NULL,
                     revision = revision + 1, deleted_at = $2, last_used = NULL
                 WHERE workspace IS NOT NULL AND last_used < $1 AND session IN (SELECT session FROM "agent_bindings" WHERE workspace IS NOT NULL AND last_used < $1 ORDER BY last_used DESC NULLS LAST LIMIT $3);

-- delete_unused
UPDATE "agent_bindings" SET previous_agent = CASE WHEN "agent_bindings".agent IS NOT NULL AND TRUE
                     THEN "agent_bindings".agent ELSE "agent_bindings".previous_agent END,
                 previous_generation = CASE WHEN "agent_bindings".agent IS NOT NULL AND TRUE
                     THEN "agent_bindings".generation ELSE "agent_bindings".previous_generation END,
                     workspace = NULL, agent = NULL, build = NULL, generation = NULL, address = NULL,
                     revision = revision + 1, deleted_at = $2, last_used = NULL
                 WHERE workspace IS NOT NULL AND last_used IS NULL AND created_at < $1 AND session IN (SELECT session FROM "agent_bindings" WHERE workspace IS NOT NULL AND last_used IS NULL AND created_at < $1 ORDER BY created_at LIMIT $3);

-- remove_deleted
DELETE FROM "agent_bindings" WHERE workspace IS NULL AND deleted_at < $1 AND revision <= $2 AND session IN (SELECT session FROM "agent_bindings" WHERE workspace IS NULL AND deleted_at < $1 AND revision <= $2 ORDER BY deleted_at LIMIT $3);

-- deleted_before
SELECT count(*), max(revision) FROM "agent_bindings" WHERE deleted_at < $1;

-- raise_floor
UPDATE "agent_bindings_meta" SET revision_floor = $1, floor_raised_at = $2
                 WHERE id = 1 AND revision_floor < $1 AND (floor_raised_at IS NULL OR floor_raised_at <= $3)
                     AND TRUE;
