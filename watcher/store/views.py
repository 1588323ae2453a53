"""The views, the tables' public side: columns are added to them, never removed.

They are written here once, in their newest form, and made anew whenever a database has others.
"""

from __future__ import annotations

# A category's figure as `--metric` takes it, in quotes where its name could be read otherwise.
_FIGURE = """CASE m.name WHEN 'DetectionBoxes_Precision/mAP' THEN 'AP'
            WHEN 'DetectionBoxes_Precision/mAP@.50IOU' THEN 'AP50'
            WHEN 'DetectionBoxes_Precision/mAP@.75IOU' THEN 'AP75'
            WHEN 'DetectionBoxes_Recall/AR@100' THEN 'AR100'
            WHEN 'DetectionMasks_Precision/mAP' THEN 'mask_AP' ELSE m.name END"""
_QUOTE = """CASE WHEN m.category NOT GLOB '*[][]*' AND m.category NOT GLOB '[''"`]*'
                AND m.category = trim(m.category, char(9, 10, 11, 12, 13, 32, 160)) THEN ''
            WHEN instr(m.category, '''') = 0 THEN ''''
            WHEN instr(m.category, '"') = 0 THEN '"' ELSE '`' END"""
_COUNTED = """FROM metrics m
    JOIN evaluations e ON e.id = m.evaluation_id
    JOIN checkpoints c ON c.id = e.checkpoint_id
    JOIN runs r ON r.id = c.run_id AND r.fingerprint = e.fingerprint"""
# Paths are recorded relative to MODEL_DIR where they lie inside; whoever asks SQL gets whole ones.
_PATH = """CASE WHEN p.path GLOB '/*' THEN p.path
            ELSE rtrim(r.model_dir, '/') || '/' || p.path END AS path"""
_PROMOTED = f"""r.name AS run, c.name AS checkpoint, c.global_step, p.score, p.metric,
        {_PATH},
        c.sha256, e.evaluated_at, c.generation"""
_PROMOTIONS = """FROM promotions p
    JOIN all_checkpoints c ON c.id = p.checkpoint_id"""


def history_of(checkpoints: str) -> str:
    """Return what the view `history` asks, of those checkpoints that a table or query has."""
    return f"""
    SELECT r.name AS run, c.name AS checkpoint, c.global_step, c.state, c.reason, e.score,
        c.sha256, c.discovered_at, e.evaluated_at, e.eval_seconds, c.note, c.generation, p.rank,
        e.low, e.high, e.machine_id AS machine
    FROM {checkpoints} c
    JOIN runs r ON r.id = c.run_id
    LEFT JOIN evaluations e ON e.checkpoint_id = c.id AND e.fingerprint = r.fingerprint
    LEFT JOIN promotions p ON p.run_id = r.id AND p.board = r.board AND p.checkpoint_id = c.id
        AND p.evicted_at IS NULL
    ORDER BY c.id
    """


# In the order in which they are made: a later one may ask an earlier one.
VIEWS = (
    "CREATE VIEW checkpoints AS SELECT * FROM all_checkpoints WHERE kind = 'saved'",
    f"""
    CREATE VIEW boards AS
    SELECT p.board, p.rank, {_PROMOTED}
    {_PROMOTIONS}
    JOIN runs r ON r.id = p.run_id
    LEFT JOIN evaluations e ON e.id = p.evaluation_id
    WHERE p.evicted_at IS NULL
    ORDER BY p.board, p.rank
    """,
    f"""
    CREATE VIEW leaderboard AS
    SELECT p.rank, {_PROMOTED},
        CASE WHEN p.metric = r.metric THEN e.low END AS low,
        CASE WHEN p.metric = r.metric THEN e.high END AS high,
        s.tied, s.p_best, s.p_top_k, s.rank_low, s.rank_high
    {_PROMOTIONS}
    JOIN runs r ON r.id = p.run_id AND r.board = p.board
    JOIN evaluations e ON e.id = p.evaluation_id
    -- Of what the run is ranked by: a place may still be by the metric of before.
    LEFT JOIN standings s ON s.evaluation_id = e.id AND p.metric = r.metric
    WHERE p.evicted_at IS NULL
    ORDER BY p.rank
    """,
    """
    CREATE VIEW best AS
    SELECT run, checkpoint, global_step, score, metric, path, sha256, evaluated_at, generation,
        low, high, tied, p_best, p_top_k, rank_low, rank_high
    FROM leaderboard WHERE rank = 1
    """,
    f"CREATE VIEW history AS {history_of('checkpoints')}",
    f"""
    CREATE VIEW metric_values AS
    SELECT r.name AS run, c.name AS checkpoint, c.global_step, m.name AS metric,
        NULLIF(m.category, '') AS category, m.value
    {_COUNTED}
    """,
    f"""
    CREATE VIEW overall_values AS
    SELECT r.name AS run, c.name AS checkpoint, c.global_step, m.name AS metric, m.value,
        c.generation
    {_COUNTED}
    WHERE m.category = ''
    """,
    f"""
    CREATE VIEW category_values AS
    SELECT r.name AS run, c.name AS checkpoint, c.global_step,
        {_FIGURE} || '[' || {_QUOTE} || m.category || {_QUOTE} || ']' AS metric,
        m.category, m.value, c.generation
    {_COUNTED}
    WHERE m.category != ''
    """,
    """
    CREATE VIEW intervals AS
    SELECT r.name AS run, c.name AS checkpoint, c.global_step, x.name AS metric,
        NULLIF(x.category, '') AS category, m.value, x.low, x.high, x.level, x.images AS n,
        x.count AS b, x.objects, c.generation
    FROM replicates x
    JOIN evaluations e ON e.id = x.evaluation_id
    JOIN checkpoints c ON c.id = e.checkpoint_id
    JOIN runs r ON r.id = c.run_id AND r.fingerprint = e.fingerprint
    LEFT JOIN metrics m
        ON m.evaluation_id = e.id AND m.name = x.name AND m.category = x.category
    """,
    """
    CREATE VIEW ties AS
    SELECT r.name AS run, c.name AS checkpoint, c.global_step, e.score, s.tied, s.p_best, s.p_top_k,
        s.rank_low, s.rank_high, c.generation
    FROM standings s
    JOIN evaluations e ON e.id = s.evaluation_id
    JOIN all_checkpoints c ON c.id = e.checkpoint_id
    JOIN runs r ON r.id = c.run_id AND r.fingerprint = e.fingerprint
    ORDER BY s.p_best DESC, e.id
    """,
    """
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
    LEFT JOIN best b ON b.run = s.run
    """,
    f"""
    CREATE VIEW averages AS
    SELECT r.name AS run, a.name AS checkpoint, a.asked,
        (SELECT group_concat(k.name, ',')
            FROM json_each(a.parents) j CROSS JOIN all_checkpoints k ON k.id = j.value) AS parents,
        CASE a.state WHEN 'written' THEN c.state ELSE a.state END AS state,
        coalesce(a.reason, c.reason) AS reason, c.global_step, e.score, r.metric,
        (SELECT {_PATH.removesuffix(" AS path")} FROM promotions p WHERE p.evicted_at IS NULL
            AND p.checkpoint_id = c.id ORDER BY p.board = 'averages' LIMIT 1) AS path,
        c.sha256, e.evaluated_at, c.generation, a.created_at, e.low, e.high,
        a.recompute_batch_norm, json_extract(a.batch_norm, '$.images') AS batch_norm_images,
        json_extract(a.batch_norm, '$.batch_size') AS batch_norm_batch,
        json_extract(a.batch_norm, '$.layers') AS batch_norm_layers
    FROM average_jobs a
    JOIN runs r ON r.id = a.run_id
    LEFT JOIN all_checkpoints c ON c.id = a.checkpoint_id
    LEFT JOIN evaluations e ON e.checkpoint_id = c.id AND e.fingerprint = r.fingerprint
    ORDER BY a.id
    """,
    """
    CREATE VIEW machine_state AS
    SELECT r.name AS run, m.id AS machine,
        CASE WHEN m.id = f.machine_id THEN 'reference' WHEN p.equal THEN 'equal'
            WHEN p.tolerance NOT NULL THEN 'accepted' WHEN p.id NOT NULL THEN 'differs'
            ELSE 'unproven' END AS standing,
        (SELECT count(*) FROM evaluations e
            WHERE e.machine_id = m.id AND e.fingerprint = r.fingerprint) AS evaluations,
        m.parts, p.device, c.name AS checkpoint, p.compared, p.differences, p.largest, p.tolerance,
        p.proved_at
    FROM runs r
    JOIN machine_references f ON f.fingerprint = r.fingerprint
    JOIN machines m
    LEFT JOIN machine_proofs p ON p.fingerprint = r.fingerprint AND p.machine_id = m.id
        AND p.against_id = f.machine_id
    LEFT JOIN all_checkpoints c ON c.id = p.checkpoint_id
    WHERE m.id = f.machine_id OR p.id NOT NULL OR EXISTS (SELECT 1 FROM evaluations e
        WHERE e.machine_id = m.id AND e.fingerprint = r.fingerprint)
    ORDER BY m.id
    """,
)
