BEGIN TRANSACTION;
CREATE TABLE "_sqlite_migrations" (
   "id" INTEGER PRIMARY KEY,
   "migration_set" TEXT,
   "name" TEXT,
   "applied_at" TEXT
);
INSERT INTO "_sqlite_migrations" VALUES(1,'checkpoint-watcher','m001_first_schema','2026-11-26 23:05:42.060097+00:00');
INSERT INTO "_sqlite_migrations" VALUES(2,'checkpoint-watcher','m002_long_runs','2026-11-26 23:05:42.063748+00:00');
INSERT INTO "_sqlite_migrations" VALUES(3,'checkpoint-watcher','m003_boards','2026-11-26 23:05:42.072222+00:00');
INSERT INTO "_sqlite_migrations" VALUES(4,'checkpoint-watcher','m004_generation','2026-11-26 23:05:42.083059+00:00');
INSERT INTO "_sqlite_migrations" VALUES(5,'checkpoint-watcher','m005_may_pass','2026-11-26 23:05:42.085162+00:00');
INSERT INTO "_sqlite_migrations" VALUES(6,'checkpoint-watcher','m006_verified','2026-11-26 23:05:42.091654+00:00');
INSERT INTO "_sqlite_migrations" VALUES(7,'checkpoint-watcher','m007_given','2026-11-26 23:05:42.094329+00:00');
INSERT INTO "_sqlite_migrations" VALUES(8,'checkpoint-watcher','m008_run_state','2026-11-26 23:05:42.103042+00:00');
CREATE TABLE checkpoints (
        id INTEGER PRIMARY KEY,
        run_id INTEGER NOT NULL REFERENCES runs(id),
        name TEXT NOT NULL,
        save_counter INTEGER NOT NULL,
        sha256 TEXT,
        signature TEXT,
        global_step INTEGER,
        state TEXT NOT NULL CHECK (state IN ('pending', 'leased', 'scored', 'untrained',
            'corrupt', 'skipped', 'failed', 'missed')),
        reason TEXT,
        size_bytes INTEGER,
        model_variables INTEGER,
        pin_path TEXT,
        pin_method TEXT,
        discovered_at TEXT NOT NULL,
        attempts INTEGER NOT NULL DEFAULT 0,
        not_before_seconds REAL NOT NULL DEFAULT 0,
        lease_token TEXT,
        lease_expires_at_seconds REAL, note TEXT, kept INTEGER NOT NULL DEFAULT 0, generation INTEGER NOT NULL DEFAULT 1, saved_at_seconds REAL, may_pass INTEGER NOT NULL DEFAULT 0,
        UNIQUE (run_id, sha256)
    );
INSERT INTO "checkpoints" VALUES(1,1,'ckpt-1',1,'f30fc22962ef31625291b84dcf1948070d60bb1241197b087a74db158c72bc36',NULL,100,'scored',NULL,9408,8,NULL,NULL,'2026-11-26T23:05:42.153Z',1,0.0,NULL,NULL,NULL,0,1,1.79573434111926460259e+09,0);
INSERT INTO "checkpoints" VALUES(2,1,'ckpt-2',2,'76bde44d2bcdc7ca4d5ec9cff83bed1f53d95710da2c5b6233c0a8e3818e7bce',NULL,200,'scored',NULL,9408,8,'76bde44d2bcdc7ca4d5ec9cff83bed1f53d95710da2c5b6233c0a8e3818e7bce/ckpt-2','link','2026-11-26T23:05:42.153Z',1,0.0,NULL,NULL,NULL,1,1,1.79573434112540388104e+09,0);
INSERT INTO "checkpoints" VALUES(3,1,'ckpt-3',3,'4d33e7fa9d17a9158f9a07973caeeedac5a2872d9082dc3583426519a0877d1c',NULL,300,'scored',NULL,9408,8,NULL,NULL,'2026-11-26T23:05:42.153Z',1,0.0,NULL,NULL,NULL,0,1,1.79573434113658070556e+09,0);
INSERT INTO "checkpoints" VALUES(4,1,'ckpt-4',4,'20d26d083aba671cf53895261e713de23e66bdab7e9c2462e9aa9d181fc808b9',NULL,400,'scored',NULL,9408,8,'20d26d083aba671cf53895261e713de23e66bdab7e9c2462e9aa9d181fc808b9/ckpt-4','link','2026-11-26T23:05:45.358Z',1,0.0,NULL,NULL,NULL,0,1,1.79573434417529654498e+09,0);
INSERT INTO "checkpoints" VALUES(5,1,'ckpt-5',5,'e39a5e325fa9c6c79b6ed13e712eb01369a62d0e98b7946a05a532478dacd457',NULL,500,'scored',NULL,9408,8,'e39a5e325fa9c6c79b6ed13e712eb01369a62d0e98b7946a05a532478dacd457/ckpt-5','link','2026-11-26T23:05:45.358Z',1,0.0,NULL,NULL,NULL,0,1,1.79573434417841291425e+09,0);
CREATE TABLE evaluations (
        id INTEGER PRIMARY KEY,
        checkpoint_id INTEGER NOT NULL REFERENCES checkpoints(id),
        fingerprint TEXT NOT NULL,
        score REAL,
        images INTEGER NOT NULL,
        device TEXT NOT NULL,
        started_at TEXT NOT NULL,
        evaluated_at TEXT NOT NULL,
        eval_seconds REAL NOT NULL,
        timings TEXT NOT NULL,
        versions TEXT NOT NULL,
        details TEXT NOT NULL,
        UNIQUE (checkpoint_id, fingerprint)
    );
INSERT INTO "evaluations" VALUES(1,1,'ffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff',0.001,8,'cpu','2026-11-26T23:05:42.575Z','2026-11-26T23:05:42.656Z',0.081,'{"total_seconds":0.1}','{"python":"stub"}','{"eval_input":"val","metrics_sets":null,"build_seconds":null,"categories":null,"coco_backend":null,"eval_set_kept":null,"warnings":null,"notes":[],"eval_name":"val","own_metrics":null,"random_metrics":null,"deterministic":null,"ground_truth":null,"cost":null,"peak_memory_bytes":null,"peak_gpu_memory_bytes":null,"model_variables":null,"visualizations":null,"metric_warnings":[]}');
INSERT INTO "evaluations" VALUES(2,2,'ffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff',0.002,8,'cpu','2026-11-26T23:05:42.656Z','2026-11-26T23:05:42.813Z',0.157,'{"total_seconds":0.1}','{"python":"stub"}','{"eval_input":"val","metrics_sets":null,"build_seconds":null,"categories":null,"coco_backend":null,"eval_set_kept":null,"warnings":null,"notes":[],"eval_name":"val","own_metrics":null,"random_metrics":null,"deterministic":null,"ground_truth":null,"cost":null,"peak_memory_bytes":null,"peak_gpu_memory_bytes":null,"model_variables":null,"visualizations":null,"metric_warnings":[]}');
INSERT INTO "evaluations" VALUES(3,3,'ffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff',0.003,8,'cpu','2026-11-26T23:05:42.813Z','2026-11-26T23:05:42.940Z',0.127,'{"total_seconds":0.1}','{"python":"stub"}','{"eval_input":"val","metrics_sets":null,"build_seconds":null,"categories":null,"coco_backend":null,"eval_set_kept":null,"warnings":null,"notes":[],"eval_name":"val","own_metrics":null,"random_metrics":null,"deterministic":null,"ground_truth":null,"cost":null,"peak_memory_bytes":null,"peak_gpu_memory_bytes":null,"model_variables":null,"visualizations":null,"metric_warnings":[]}');
INSERT INTO "evaluations" VALUES(4,4,'ffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff',0.004,8,'cpu','2026-11-26T23:05:45.666Z','2026-11-26T23:05:45.720Z',0.054,'{"total_seconds":0.1}','{"python":"stub"}','{"eval_input":"val","metrics_sets":null,"build_seconds":null,"categories":null,"coco_backend":null,"eval_set_kept":null,"warnings":null,"notes":[],"eval_name":"val","own_metrics":null,"random_metrics":null,"deterministic":null,"ground_truth":null,"cost":null,"peak_memory_bytes":null,"peak_gpu_memory_bytes":null,"model_variables":null,"visualizations":null,"metric_warnings":[]}');
INSERT INTO "evaluations" VALUES(5,5,'ffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff',0.005,8,'cpu','2026-11-26T23:05:45.710Z','2026-11-26T23:05:45.890Z',0.18,'{"total_seconds":0.1}','{"python":"stub"}','{"eval_input":"val","metrics_sets":null,"build_seconds":null,"categories":null,"coco_backend":null,"eval_set_kept":null,"warnings":null,"notes":[],"eval_name":"val","own_metrics":null,"random_metrics":null,"deterministic":null,"ground_truth":null,"cost":null,"peak_memory_bytes":null,"peak_gpu_memory_bytes":null,"model_variables":null,"visualizations":null,"metric_warnings":[]}');
CREATE TABLE events (
        id INTEGER PRIMARY KEY,
        run_id INTEGER NOT NULL REFERENCES runs(id),
        at TEXT NOT NULL,
        kind TEXT NOT NULL,
        checkpoint TEXT,
        message TEXT NOT NULL
    );
INSERT INTO "events" VALUES(1,1,'2026-11-26T23:05:42.153Z','pending','ckpt-1','found and pinned');
INSERT INTO "events" VALUES(2,1,'2026-11-26T23:05:42.153Z','pending','ckpt-2','found and pinned');
INSERT INTO "events" VALUES(3,1,'2026-11-26T23:05:42.153Z','pending','ckpt-3','found and pinned');
INSERT INTO "events" VALUES(4,1,'2026-11-26T23:05:42.153Z','promoted','ckpt-3','rank 1 in mine/');
INSERT INTO "events" VALUES(5,1,'2026-11-26T23:05:42.656Z','scored','ckpt-1','score 0.001');
INSERT INTO "events" VALUES(6,1,'2026-11-26T23:05:42.656Z','promoted','ckpt-1','rank 1 in elsewhere/');
INSERT INTO "events" VALUES(7,1,'2026-11-26T23:05:42.656Z','promoted','ckpt-1','rank 1 in best-loss/');
INSERT INTO "events" VALUES(8,1,'2026-11-26T23:05:42.813Z','scored','ckpt-2','score 0.002');
INSERT INTO "events" VALUES(9,1,'2026-11-26T23:05:42.813Z','promoted','ckpt-2','rank 1 in elsewhere/');
INSERT INTO "events" VALUES(10,1,'2026-11-26T23:05:42.813Z','evicted','ckpt-1','leaves best-loss/');
INSERT INTO "events" VALUES(11,1,'2026-11-26T23:05:42.813Z','promoted','ckpt-2','rank 1 in best-loss/');
INSERT INTO "events" VALUES(12,1,'2026-11-26T23:05:42.940Z','scored','ckpt-3','score 0.003');
INSERT INTO "events" VALUES(13,1,'2026-11-26T23:05:42.940Z','evicted','ckpt-1','leaves elsewhere/');
INSERT INTO "events" VALUES(14,1,'2026-11-26T23:05:42.940Z','promoted','ckpt-3','rank 1 in elsewhere/');
INSERT INTO "events" VALUES(15,1,'2026-11-26T23:05:42.940Z','evicted','ckpt-2','leaves best-loss/');
INSERT INTO "events" VALUES(16,1,'2026-11-26T23:05:42.940Z','promoted','ckpt-3','rank 1 in best-loss/');
INSERT INTO "events" VALUES(17,1,'2026-11-26T23:05:42.940Z','promoted','ckpt-3','rank 1 in mine/');
INSERT INTO "events" VALUES(18,1,'2026-11-26T23:05:45.358Z','pending','ckpt-4','found and pinned');
INSERT INTO "events" VALUES(19,1,'2026-11-26T23:05:45.358Z','pending','ckpt-5','found and pinned');
INSERT INTO "events" VALUES(20,1,'2026-11-26T23:05:45.358Z','evicted','ckpt-3','leaves mine/');
INSERT INTO "events" VALUES(21,1,'2026-11-26T23:05:45.358Z','promoted','ckpt-5','rank 1 in mine/');
INSERT INTO "events" VALUES(22,1,'2026-11-26T23:05:45.720Z','scored','ckpt-4','score 0.004');
INSERT INTO "events" VALUES(23,1,'2026-11-26T23:05:45.720Z','evicted','ckpt-2','leaves elsewhere/');
INSERT INTO "events" VALUES(24,1,'2026-11-26T23:05:45.720Z','promoted','ckpt-4','rank 1 in elsewhere/');
INSERT INTO "events" VALUES(25,1,'2026-11-26T23:05:45.720Z','evicted','ckpt-3','leaves best-loss/');
INSERT INTO "events" VALUES(26,1,'2026-11-26T23:05:45.720Z','promoted','ckpt-4','rank 1 in best-loss/');
INSERT INTO "events" VALUES(27,1,'2026-11-26T23:05:45.890Z','scored','ckpt-5','score 0.005');
INSERT INTO "events" VALUES(28,1,'2026-11-26T23:05:45.890Z','evicted','ckpt-3','leaves elsewhere/');
INSERT INTO "events" VALUES(29,1,'2026-11-26T23:05:45.890Z','promoted','ckpt-5','rank 1 in elsewhere/');
INSERT INTO "events" VALUES(30,1,'2026-11-26T23:05:45.890Z','evicted','ckpt-4','leaves best-loss/');
INSERT INTO "events" VALUES(31,1,'2026-11-26T23:05:45.890Z','promoted','ckpt-5','rank 1 in best-loss/');
INSERT INTO "events" VALUES(32,1,'2026-11-26T23:05:45.890Z','promoted','ckpt-5','rank 1 in mine/');
INSERT INTO "events" VALUES(33,1,'2026-11-26T23:05:48.604Z','kept','ckpt-2','kept by hand');
INSERT INTO "events" VALUES(34,1,'2026-11-26T23:05:48.653Z','promoted','ckpt-2','rank 2 in mine/');
CREATE TABLE metrics (
        evaluation_id INTEGER NOT NULL REFERENCES evaluations(id),
        name TEXT NOT NULL,
        category TEXT NOT NULL DEFAULT '',
        value REAL,
        PRIMARY KEY (evaluation_id, name, category)
    ) WITHOUT ROWID
    ;
INSERT INTO "metrics" VALUES(1,'AP','rectangle',0.001);
INSERT INTO "metrics" VALUES(1,'DetectionBoxes_Precision/mAP','',0.001);
INSERT INTO "metrics" VALUES(1,'Loss/total_loss','',0.999);
INSERT INTO "metrics" VALUES(2,'AP','rectangle',0.002);
INSERT INTO "metrics" VALUES(2,'DetectionBoxes_Precision/mAP','',0.002);
INSERT INTO "metrics" VALUES(2,'Loss/total_loss','',0.998);
INSERT INTO "metrics" VALUES(3,'AP','rectangle',0.003);
INSERT INTO "metrics" VALUES(3,'DetectionBoxes_Precision/mAP','',0.003);
INSERT INTO "metrics" VALUES(3,'Loss/total_loss','',0.997);
INSERT INTO "metrics" VALUES(4,'AP','rectangle',0.004);
INSERT INTO "metrics" VALUES(4,'DetectionBoxes_Precision/mAP','',0.004);
INSERT INTO "metrics" VALUES(4,'Loss/total_loss','',0.996);
INSERT INTO "metrics" VALUES(5,'AP','rectangle',0.005);
INSERT INTO "metrics" VALUES(5,'DetectionBoxes_Precision/mAP','',0.005);
INSERT INTO "metrics" VALUES(5,'Loss/total_loss','',0.995);
CREATE TABLE "placements" (
        run_id INTEGER NOT NULL REFERENCES runs(id),
        board TEXT NOT NULL,
        sha256 TEXT NOT NULL,
        name TEXT NOT NULL, files TEXT,
        PRIMARY KEY (run_id, board, sha256)
    );
INSERT INTO "placements" VALUES(1,'kept','e39a5e325fa9c6c79b6ed13e712eb01369a62d0e98b7946a05a532478dacd457','ckpt-5','[[65024,4358408,1425,1795734345482081644],[65024,4358410,7983,1795734344178412863]]');
INSERT INTO "placements" VALUES(1,'best','20d26d083aba671cf53895261e713de23e66bdab7e9c2462e9aa9d181fc808b9','ckpt-4','[[65024,4358409,1425,1795734345734901984],[65024,4358411,7983,1795734344175296455]]');
INSERT INTO "placements" VALUES(1,'best','e39a5e325fa9c6c79b6ed13e712eb01369a62d0e98b7946a05a532478dacd457','ckpt-5','[[65024,4358376,1425,1795734345906949917],[65024,4358410,7983,1795734344178412863]]');
INSERT INTO "placements" VALUES(1,'loss','e39a5e325fa9c6c79b6ed13e712eb01369a62d0e98b7946a05a532478dacd457','ckpt-5','[[65024,4358382,1425,1795734345973004178],[65024,4358410,7983,1795734344178412863]]');
INSERT INTO "placements" VALUES(1,'kept','76bde44d2bcdc7ca4d5ec9cff83bed1f53d95710da2c5b6233c0a8e3818e7bce','ckpt-2','[[65024,4358456,1425,1795734348670993230],[65024,4358352,7983,1795734341125403798]]');
CREATE TABLE "promotions" (
        id INTEGER PRIMARY KEY,
        run_id INTEGER NOT NULL REFERENCES runs(id),
        board TEXT NOT NULL,
        checkpoint_id INTEGER NOT NULL REFERENCES checkpoints(id),
        evaluation_id INTEGER REFERENCES evaluations(id),
        rank INTEGER NOT NULL,
        score REAL,
        metric TEXT NOT NULL,
        path TEXT NOT NULL,
        promoted_at TEXT NOT NULL,
        evicted_at TEXT
    );
INSERT INTO "promotions" VALUES(1,1,'kept',3,NULL,1,NULL,'mAP','/runs/model_dir/mine/ckpt-3','2026-11-26T23:05:42.153Z','2026-11-26T23:05:42.940Z');
INSERT INTO "promotions" VALUES(2,1,'best',1,1,2,0.001,'mAP','/runs/elsewhere/ckpt-1','2026-11-26T23:05:42.656Z','2026-11-26T23:05:42.940Z');
INSERT INTO "promotions" VALUES(3,1,'loss',1,1,1,0.999,'loss','/runs/model_dir/best-loss/ckpt-1','2026-11-26T23:05:42.656Z','2026-11-26T23:05:42.813Z');
INSERT INTO "promotions" VALUES(4,1,'best',2,2,2,0.002,'mAP','/runs/elsewhere/ckpt-2','2026-11-26T23:05:42.813Z','2026-11-26T23:05:45.720Z');
INSERT INTO "promotions" VALUES(5,1,'loss',2,2,1,0.998,'loss','/runs/model_dir/best-loss/ckpt-2','2026-11-26T23:05:42.813Z','2026-11-26T23:05:42.940Z');
INSERT INTO "promotions" VALUES(6,1,'best',3,3,2,0.003,'mAP','/runs/elsewhere/ckpt-3','2026-11-26T23:05:42.940Z','2026-11-26T23:05:45.890Z');
INSERT INTO "promotions" VALUES(7,1,'loss',3,3,1,0.997,'loss','/runs/moved/best-loss/ckpt-3','2026-11-26T23:05:42.940Z','2026-11-26T23:05:45.720Z');
INSERT INTO "promotions" VALUES(8,1,'kept',3,3,1,0.003,'mAP','/runs/moved/mine/ckpt-3','2026-11-26T23:05:42.940Z','2026-11-26T23:05:45.358Z');
INSERT INTO "promotions" VALUES(9,1,'kept',5,NULL,1,NULL,'mAP','/runs/moved/mine/ckpt-5','2026-11-26T23:05:45.358Z','2026-11-26T23:05:45.890Z');
INSERT INTO "promotions" VALUES(10,1,'best',4,4,2,0.004,'mAP','/runs/elsewhere/ckpt-4','2026-11-26T23:05:45.720Z',NULL);
INSERT INTO "promotions" VALUES(11,1,'loss',4,4,1,0.996,'loss','/runs/moved/best-loss/ckpt-4','2026-11-26T23:05:45.720Z','2026-11-26T23:05:45.890Z');
INSERT INTO "promotions" VALUES(12,1,'best',5,5,1,0.005,'mAP','/runs/elsewhere/ckpt-5','2026-11-26T23:05:45.890Z',NULL);
INSERT INTO "promotions" VALUES(13,1,'loss',5,5,1,0.995,'loss','/runs/moved/best-loss/ckpt-5','2026-11-26T23:05:45.890Z',NULL);
INSERT INTO "promotions" VALUES(14,1,'kept',5,5,1,0.005,'mAP','/runs/moved/mine/ckpt-5','2026-11-26T23:05:45.890Z',NULL);
INSERT INTO "promotions" VALUES(15,1,'kept',2,2,2,0.002,'mAP','/runs/moved/mine/ckpt-2','2026-11-26T23:05:48.653Z',NULL);
CREATE TABLE runs (
        id INTEGER PRIMARY KEY,
        uuid TEXT NOT NULL UNIQUE,
        name TEXT NOT NULL,
        model_dir TEXT NOT NULL,
        created_at TEXT NOT NULL,
        metric TEXT NOT NULL,
        mode TEXT NOT NULL,
        fingerprint TEXT,
        status TEXT NOT NULL DEFAULT '{}'
    , board TEXT NOT NULL DEFAULT 'best', settings TEXT NOT NULL DEFAULT '{}', resumed_step INTEGER NOT NULL DEFAULT -1, resumed_generation INTEGER NOT NULL DEFAULT 1, given TEXT, stopping TEXT NOT NULL DEFAULT '{}');
INSERT INTO "runs" VALUES(1,'6a3a3717-3a54-40ec-96b7-cda187ca4c62','moved','/runs/moved','2026-11-26T23:05:41.981Z','mAP','max','ffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff','{}','best','{"model_dir":"/runs/moved","pipeline_config":"/runs/moved/pipeline.config","run_name":null,"state_dir":null,"best_dir":"/runs/elsewhere","kept_dir":"/runs/moved/mine","eval_dir":null,"sentinel":null,"group":null,"metric":"mAP","mode":null,"top_k":2,"tie_break":[],"ties":"oldest","veto":[],"keep_every_steps":null,"keep_last":1,"board":[{"name":"best","folder":"/runs/elsewhere","metric":"mAP","mode":null,"top_k":2,"tie_break":null,"ties":null,"veto":null},{"name":"loss","folder":null,"metric":"loss","mode":"min","top_k":1,"tie_break":null,"ties":null,"veto":null}],"patience":3,"patience_steps":null,"min_delta":0.0,"smoothing":"none","min_steps":0,"min_evaluations":0,"target":null,"divergence":null,"max_not_finite":null,"plateau_std":null,"plateau_window":5,"max_steps":null,"max_hours":null,"python":"/opt/od/bin/python","working_directory":"/opt/watcher","device":"cpu","device_turn_seconds":600.0,"device_lock_dir":null,"eval_input":null,"eval_batch_size":null,"sample_1_of_n":null,"eval_cache_mib":null,"threads":null,"nice":null,"worker_memory_limit":null,"coco_backend":"auto","metric_plugin":[],"max_attempts":3,"retry_seconds":5.0,"start_timeout":600.0,"stall_timeout":600.0,"tensorboard":true,"tensorboard_categories":false,"visualizations":null,"listen":null,"health_seconds":120.0,"notify_seconds":30.0,"queue_policy":"all","max_pinned_bytes":null,"exit_when_idle":0.2,"wait_for_model_dir":false,"rescan_seconds":10.0,"grace_seconds":30.0,"evict_seconds":0.2,"log_format":"auto"}',-1,1,'{"working_directory":"where it was started","board":"/runs/settings.toml","model_dir":"--model-dir","patience":"--patience","kept_dir":"--kept-dir","python":"--python","tensorboard":"--tensorboard","pipeline_config":"--pipeline-config","keep_last":"--keep-last","exit_when_idle":"--exit-when-idle","evict_seconds":"CHECKPOINT_WATCHER_EVICT_SECONDS"}','{"reason":null,"patience_left":{"evaluations":3}}');
CREATE UNIQUE INDEX "idx__sqlite_migrations_migration_set_name"
    ON "_sqlite_migrations" ("migration_set", "name");
CREATE INDEX checkpoints_by_state ON checkpoints (run_id, state, global_step, id);
CREATE VIEW metric_values AS
    SELECT r.name AS run, c.name AS checkpoint, c.global_step, m.name AS metric,
        NULLIF(m.category, '') AS category, m.value
    FROM metrics m
    JOIN evaluations e ON e.id = m.evaluation_id
    JOIN checkpoints c ON c.id = e.checkpoint_id
    JOIN runs r ON r.id = c.run_id AND r.fingerprint = e.fingerprint;
CREATE INDEX checkpoints_pinned ON checkpoints (run_id, id) WHERE pin_path IS NOT NULL;
CREATE INDEX checkpoints_by_name ON checkpoints (run_id, name);
CREATE INDEX promotions_now ON promotions (run_id, board, rank) WHERE evicted_at IS NULL;
CREATE INDEX checkpoints_by_generation ON checkpoints (run_id, generation, saved_at_seconds, save_counter, global_step) WHERE sha256 IS NOT NULL;
CREATE VIEW boards AS
    SELECT p.board, p.rank, r.name AS run, c.name AS checkpoint, c.global_step, p.score, p.metric,
        p.path, c.sha256, e.evaluated_at, c.generation
    FROM promotions p
    JOIN runs r ON r.id = p.run_id
    JOIN checkpoints c ON c.id = p.checkpoint_id
    LEFT JOIN evaluations e ON e.id = p.evaluation_id
    WHERE p.evicted_at IS NULL
    ORDER BY p.board, p.rank;
CREATE VIEW leaderboard AS
    SELECT p.rank, r.name AS run, c.name AS checkpoint, c.global_step, p.score, p.metric, p.path,
        c.sha256, e.evaluated_at, c.generation
    FROM promotions p
    JOIN runs r ON r.id = p.run_id AND r.board = p.board
    JOIN checkpoints c ON c.id = p.checkpoint_id
    JOIN evaluations e ON e.id = p.evaluation_id
    WHERE p.evicted_at IS NULL
    ORDER BY p.rank;
CREATE VIEW best AS
    SELECT run, checkpoint, global_step, score, metric, path, sha256, evaluated_at, generation
    FROM leaderboard WHERE rank = 1;
CREATE VIEW history AS
    SELECT r.name AS run, c.name AS checkpoint, c.global_step, c.state, c.reason, e.score,
        c.sha256, c.discovered_at, e.evaluated_at, e.eval_seconds, c.note, c.generation, p.rank
    FROM checkpoints c
    JOIN runs r ON r.id = c.run_id
    LEFT JOIN evaluations e ON e.checkpoint_id = c.id AND e.fingerprint = r.fingerprint
    LEFT JOIN promotions p ON p.run_id = r.id AND p.board = r.board AND p.checkpoint_id = c.id
        AND p.evicted_at IS NULL
    ORDER BY c.id;
CREATE VIEW overall_values AS
    SELECT r.name AS run, c.name AS checkpoint, c.global_step, m.name AS metric, m.value,
        c.generation
    FROM metrics m
    JOIN evaluations e ON e.id = m.evaluation_id
    JOIN checkpoints c ON c.id = e.checkpoint_id
    JOIN runs r ON r.id = c.run_id AND r.fingerprint = e.fingerprint
    WHERE m.category = '';
CREATE VIEW category_values AS
    SELECT r.name AS run, c.name AS checkpoint, c.global_step,
        CASE m.name WHEN 'DetectionBoxes_Precision/mAP' THEN 'AP'
            WHEN 'DetectionBoxes_Precision/mAP@.50IOU' THEN 'AP50'
            WHEN 'DetectionBoxes_Precision/mAP@.75IOU' THEN 'AP75'
            WHEN 'DetectionBoxes_Recall/AR@100' THEN 'AR100'
            WHEN 'DetectionMasks_Precision/mAP' THEN 'mask_AP' ELSE m.name END || '[' || CASE WHEN m.category NOT GLOB '*[][]*' AND m.category NOT GLOB '[''"`]*'
                AND m.category = trim(m.category, char(9, 10, 11, 12, 13, 32, 160)) THEN ''
            WHEN instr(m.category, '''') = 0 THEN ''''
            WHEN instr(m.category, '"') = 0 THEN '"' ELSE '`' END || m.category || CASE WHEN m.category NOT GLOB '*[][]*' AND m.category NOT GLOB '[''"`]*'
                AND m.category = trim(m.category, char(9, 10, 11, 12, 13, 32, 160)) THEN ''
            WHEN instr(m.category, '''') = 0 THEN ''''
            WHEN instr(m.category, '"') = 0 THEN '"' ELSE '`' END || ']' AS metric,
        m.category, m.value, c.generation
    FROM metrics m
    JOIN evaluations e ON e.id = m.evaluation_id
    JOIN checkpoints c ON c.id = e.checkpoint_id
    JOIN runs r ON r.id = c.run_id AND r.fingerprint = e.fingerprint
    WHERE m.category != '';
CREATE VIEW run_state AS
    SELECT s.run, CASE WHEN s.stop IS NOT NULL THEN 'stopped' WHEN s.ended IS NOT NULL THEN 'failed'
            WHEN s.pid IS NOT NULL THEN 'running' ELSE 'ended' END AS state,
        CASE WHEN s.stop IS NOT NULL THEN json_extract(s.stopping, '$.reason') END AS stop_reason,
        coalesce(s.stop, s.ended, s.problem) AS message, s.metric, s.mode,
        json_extract(s.settings, '$.patience') AS patience,
        coalesce(json_extract(s.status, '$.patience_left.evaluations'),
            json_extract(s.stopping, '$.patience_left.evaluations')) AS patience_left,
        json_extract(s.settings, '$.patience_steps') AS patience_steps,
        coalesce(json_extract(s.status, '$.patience_left.steps'),
            json_extract(s.stopping, '$.patience_left.steps')) AS patience_steps_left,
        json_extract(s.settings, '$.min_delta') AS min_delta,
        b.checkpoint AS best, b.global_step AS best_step, b.score AS best_score,
        (SELECT count(*) FROM checkpoints c WHERE c.run_id = s.id AND c.state = 'scored') AS scored,
        (SELECT count(*) FROM checkpoints c WHERE c.run_id = s.id
            AND c.state IN ('pending', 'leased')) AS waiting,
        (SELECT max(v.at) FROM events v WHERE v.run_id = s.id) AS updated_at
    FROM (
        SELECT r.id, r.name AS run, r.metric, r.mode, r.status, r.settings, r.stopping,
            json_extract(r.status, '$.pid') AS pid, json_extract(r.status, '$.ended') AS ended,
            json_extract(r.status, '$.problem') AS problem,
            (SELECT CASE v.kind WHEN 'stop' THEN v.message END FROM events v
                WHERE v.run_id = r.id AND v.kind IN ('stop', 'stop_withdrawn')
                ORDER BY v.id DESC LIMIT 1) AS stop
        FROM runs r
    ) s
    LEFT JOIN best b ON b.run = s.run;
COMMIT;
