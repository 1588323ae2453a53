"""The database's tables, and the views that others may rely on.

Times that people read are ISO 8601 in UTC; times that the daemon computes with are seconds since
the epoch and end in `_at_seconds`. Migrations are only ever added.
"""

from __future__ import annotations

from watcher.decision.generation import Life, Save, generation_of, with_save
from watcher.store.sqlite import Database, Migrations

migrations = Migrations("checkpoint-watcher")

_TABLES = (
    """
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
    )
    """,
    """
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
        lease_expires_at_seconds REAL,
        UNIQUE (run_id, sha256)
    )
    """,
    "CREATE INDEX checkpoints_by_state ON checkpoints (run_id, state, global_step, id)",
    """
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
    )
    """,
    # category '' stands for an overall metric: a primary key cannot tell two NULLs apart.
    """
    CREATE TABLE metrics (
        evaluation_id INTEGER NOT NULL REFERENCES evaluations(id),
        name TEXT NOT NULL,
        category TEXT NOT NULL DEFAULT '',
        value REAL,
        PRIMARY KEY (evaluation_id, name, category)
    ) WITHOUT ROWID
    """,
    """
    CREATE TABLE promotions (
        id INTEGER PRIMARY KEY,
        run_id INTEGER NOT NULL REFERENCES runs(id),
        checkpoint_id INTEGER NOT NULL REFERENCES checkpoints(id),
        evaluation_id INTEGER NOT NULL REFERENCES evaluations(id),
        rank INTEGER NOT NULL,
        score REAL NOT NULL,
        metric TEXT NOT NULL,
        path TEXT NOT NULL,
        promoted_at TEXT NOT NULL,
        evicted_at TEXT
    )
    """,
    "CREATE INDEX promotions_now ON promotions (run_id, rank) WHERE evicted_at IS NULL",
    # Names that files of ours carry in best/: written before the first file, deleted after the
    # last, so that after a crash it is known which files are ours to finish or to remove.
    """
    CREATE TABLE placements (
        run_id INTEGER NOT NULL REFERENCES runs(id),
        sha256 TEXT NOT NULL,
        name TEXT NOT NULL,
        PRIMARY KEY (run_id, sha256)
    )
    """,
    """
    CREATE TABLE events (
        id INTEGER PRIMARY KEY,
        run_id INTEGER NOT NULL REFERENCES runs(id),
        at TEXT NOT NULL,
        kind TEXT NOT NULL,
        checkpoint TEXT,
        message TEXT NOT NULL
    )
    """,
)

_VIEWS = (
    """
    CREATE VIEW leaderboard AS
    SELECT p.rank, r.name AS run, c.name AS checkpoint, c.global_step, p.score, p.metric, p.path,
        c.sha256, e.evaluated_at
    FROM promotions p
    JOIN runs r ON r.id = p.run_id
    JOIN checkpoints c ON c.id = p.checkpoint_id
    JOIN evaluations e ON e.id = p.evaluation_id
    WHERE p.evicted_at IS NULL
    ORDER BY p.rank
    """,
    """
    CREATE VIEW best AS
    SELECT run, checkpoint, global_step, score, metric, path, sha256, evaluated_at
    FROM leaderboard WHERE rank = 1
    """,
    """
    CREATE VIEW history AS
    SELECT r.name AS run, c.name AS checkpoint, c.global_step, c.state, c.reason, e.score,
        c.sha256, c.discovered_at, e.evaluated_at, e.eval_seconds
    FROM checkpoints c
    JOIN runs r ON r.id = c.run_id
    LEFT JOIN evaluations e ON e.checkpoint_id = c.id AND e.fingerprint = r.fingerprint
    ORDER BY c.id
    """,
    """
    CREATE VIEW metric_values AS
    SELECT r.name AS run, c.name AS checkpoint, c.global_step, m.name AS metric,
        NULLIF(m.category, '') AS category, m.value
    FROM metrics m
    JOIN evaluations e ON e.id = m.evaluation_id
    JOIN checkpoints c ON c.id = e.checkpoint_id
    JOIN runs r ON r.id = c.run_id AND r.fingerprint = e.fingerprint
    """,
)


@migrations()
def m001_first_schema(db: Database) -> None:
    """Create the tables and the public views."""
    for statement in _TABLES + _VIEWS:
        db.execute(statement)


@migrations()
def m002_long_runs(db: Database) -> None:
    """Find the pinned checkpoints and those of one name without reading all there ever were."""
    db.execute(
        "CREATE INDEX checkpoints_pinned ON checkpoints (run_id, id) WHERE pin_path IS NOT NULL"
    )
    db.execute("CREATE INDEX checkpoints_by_name ON checkpoints (run_id, name)")


_BOARDS = (
    # ALTER TABLE RENAME looks at the views, so they go first.
    *(f"DROP VIEW {view}" for view in ("best", "leaderboard", "history")),
    "ALTER TABLE runs ADD COLUMN board TEXT NOT NULL DEFAULT 'best'",
    "ALTER TABLE runs ADD COLUMN settings TEXT NOT NULL DEFAULT '{}'",
    "ALTER TABLE runs ADD COLUMN resumed_step INTEGER NOT NULL DEFAULT -1",
    "ALTER TABLE checkpoints ADD COLUMN note TEXT",
    "ALTER TABLE checkpoints ADD COLUMN kept INTEGER NOT NULL DEFAULT 0",
    # What is kept for another reason than its score may have none: those two may be NULL now.
    """
    CREATE TABLE new_promotions (
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
    )
    """,
    "INSERT INTO new_promotions SELECT id, run_id, 'best', checkpoint_id, evaluation_id, rank,"
    " score, metric, path, promoted_at, evicted_at FROM promotions",
    "DROP TABLE promotions",
    "ALTER TABLE new_promotions RENAME TO promotions",
    "CREATE INDEX promotions_now ON promotions (run_id, board, rank) WHERE evicted_at IS NULL",
    """
    CREATE TABLE new_placements (
        run_id INTEGER NOT NULL REFERENCES runs(id),
        board TEXT NOT NULL,
        sha256 TEXT NOT NULL,
        name TEXT NOT NULL,
        PRIMARY KEY (run_id, board, sha256)
    )
    """,
    "INSERT INTO new_placements SELECT run_id, 'best', sha256, name FROM placements",
    "DROP TABLE placements",
    "ALTER TABLE new_placements RENAME TO placements",
    """
    CREATE VIEW boards AS
    SELECT p.board, p.rank, r.name AS run, c.name AS checkpoint, c.global_step, p.score, p.metric,
        p.path, c.sha256, e.evaluated_at
    FROM promotions p
    JOIN runs r ON r.id = p.run_id
    JOIN checkpoints c ON c.id = p.checkpoint_id
    LEFT JOIN evaluations e ON e.id = p.evaluation_id
    WHERE p.evicted_at IS NULL
    ORDER BY p.board, p.rank
    """,
    """
    CREATE VIEW leaderboard AS
    SELECT p.rank, r.name AS run, c.name AS checkpoint, c.global_step, p.score, p.metric, p.path,
        c.sha256, e.evaluated_at
    FROM promotions p
    JOIN runs r ON r.id = p.run_id AND r.board = p.board
    JOIN checkpoints c ON c.id = p.checkpoint_id
    JOIN evaluations e ON e.id = p.evaluation_id
    WHERE p.evicted_at IS NULL
    ORDER BY p.rank
    """,
    """
    CREATE VIEW best AS
    SELECT run, checkpoint, global_step, score, metric, path, sha256, evaluated_at
    FROM leaderboard WHERE rank = 1
    """,
    """
    CREATE VIEW history AS
    SELECT r.name AS run, c.name AS checkpoint, c.global_step, c.state, c.reason, e.score,
        c.sha256, c.discovered_at, e.evaluated_at, e.eval_seconds, c.note
    FROM checkpoints c
    JOIN runs r ON r.id = c.run_id
    LEFT JOIN evaluations e ON e.checkpoint_id = c.id AND e.fingerprint = r.fingerprint
    ORDER BY c.id
    """,
)


@migrations()
def m003_boards(db: Database) -> None:
    """Several boards, checkpoints kept for another reason, and why one was not promoted."""
    for statement in _BOARDS:
        db.execute(statement)


_GENERATIONS = (
    *(f"DROP VIEW {view}" for view in ("best", "leaderboard", "boards", "history")),
    "ALTER TABLE checkpoints ADD COLUMN generation INTEGER NOT NULL DEFAULT 1",
    "ALTER TABLE checkpoints ADD COLUMN saved_at_seconds REAL",
    "ALTER TABLE runs ADD COLUMN resumed_generation INTEGER NOT NULL DEFAULT 1",
    # All that tells lives apart, so that each new row is not compared with a table of all.
    "CREATE INDEX checkpoints_by_generation ON checkpoints (run_id, generation, saved_at_seconds,"
    " save_counter, global_step) WHERE sha256 IS NOT NULL",
    """
    CREATE VIEW boards AS
    SELECT p.board, p.rank, r.name AS run, c.name AS checkpoint, c.global_step, p.score, p.metric,
        p.path, c.sha256, e.evaluated_at, c.generation
    FROM promotions p
    JOIN runs r ON r.id = p.run_id
    JOIN checkpoints c ON c.id = p.checkpoint_id
    LEFT JOIN evaluations e ON e.id = p.evaluation_id
    WHERE p.evicted_at IS NULL
    ORDER BY p.board, p.rank
    """,
    """
    CREATE VIEW leaderboard AS
    SELECT p.rank, r.name AS run, c.name AS checkpoint, c.global_step, p.score, p.metric, p.path,
        c.sha256, e.evaluated_at, c.generation
    FROM promotions p
    JOIN runs r ON r.id = p.run_id AND r.board = p.board
    JOIN checkpoints c ON c.id = p.checkpoint_id
    JOIN evaluations e ON e.id = p.evaluation_id
    WHERE p.evicted_at IS NULL
    ORDER BY p.rank
    """,
    """
    CREATE VIEW best AS
    SELECT run, checkpoint, global_step, score, metric, path, sha256, evaluated_at, generation
    FROM leaderboard WHERE rank = 1
    """,
    """
    CREATE VIEW history AS
    SELECT r.name AS run, c.name AS checkpoint, c.global_step, c.state, c.reason, e.score,
        c.sha256, c.discovered_at, e.evaluated_at, e.eval_seconds, c.note, c.generation
    FROM checkpoints c
    JOIN runs r ON r.id = c.run_id
    LEFT JOIN evaluations e ON e.checkpoint_id = c.id AND e.fingerprint = r.fingerprint
    ORDER BY c.id
    """,
)


@migrations()
def m004_generation(db: Database) -> None:
    """Tell the lives of a trainer that starts over apart; earlier rows by their order alone."""
    for statement in _GENERATIONS:
        db.execute(statement)
    lives: dict[int, list[Life]] = {}
    rows = db.query("SELECT id, run_id, save_counter, global_step, sha256 FROM checkpoints")
    for row in sorted(rows, key=lambda row: row["id"]):
        save, known = Save(row["save_counter"], row["global_step"]), lives.get(row["run_id"], [])
        generation = known[-1].generation if known else 1
        if row["sha256"] is not None:
            generation = generation_of(save, known)
            lives[row["run_id"]] = with_save(known, save, generation)
        db.execute("UPDATE checkpoints SET generation = ? WHERE id = ?", [generation, row["id"]])
    db.execute(
        "UPDATE runs SET resumed_generation = coalesce((SELECT max(c.generation) FROM checkpoints c"
        " WHERE c.run_id = runs.id AND c.discovered_at <= (SELECT max(e.at) FROM events e"
        " WHERE e.run_id = runs.id AND e.kind = 'resumed')), 1)"
    )


@migrations()
def m005_may_pass(db: Database) -> None:
    """Tell what failed for a reason that may pass, a broken device say: its pin is kept."""
    db.execute("ALTER TABLE checkpoints ADD COLUMN may_pass INTEGER NOT NULL DEFAULT 0")


@migrations()
def m006_verified(db: Database) -> None:
    """What the files in a folder were when they were last read byte by byte and found whole."""
    db.execute("ALTER TABLE placements ADD COLUMN files TEXT")


@migrations()
def m007_given(db: Database) -> None:
    """What the last start was given, by setting: the flag, the variable or the file."""
    db.execute("ALTER TABLE runs ADD COLUMN given TEXT")


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
_RUN_STATE = (
    "DROP VIEW history",
    # What stopping decided last, as JSON: `reason`, the code of the rule or null; `patience_left`.
    "ALTER TABLE runs ADD COLUMN stopping TEXT NOT NULL DEFAULT '{}'",
    """
    CREATE VIEW history AS
    SELECT r.name AS run, c.name AS checkpoint, c.global_step, c.state, c.reason, e.score,
        c.sha256, c.discovered_at, e.evaluated_at, e.eval_seconds, c.note, c.generation, p.rank
    FROM checkpoints c
    JOIN runs r ON r.id = c.run_id
    LEFT JOIN evaluations e ON e.checkpoint_id = c.id AND e.fingerprint = r.fingerprint
    LEFT JOIN promotions p ON p.run_id = r.id AND p.board = r.board AND p.checkpoint_id = c.id
        AND p.evicted_at IS NULL
    ORDER BY c.id
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
)


@migrations()
def m008_run_state(db: Database) -> None:
    """Views for those who know nothing of JSON, of categories that mix in, or of boards."""
    for statement in _RUN_STATE:
        db.execute(statement)


@migrations()
def m009_missed_count(db: Database) -> None:
    """Of how many saves a row tells: those that nobody saw, one after another, share one."""
    db.execute("ALTER TABLE checkpoints ADD COLUMN saves INTEGER NOT NULL DEFAULT 1")


def unknown_migrations(db: Database) -> list[str]:
    """Return the names of the migrations of ours that a later version has applied."""
    empty = Database(memory=True)
    try:
        known = {migration.name for migration in migrations.pending(empty)}
    finally:
        empty.close()
    return [done.name for done in migrations.applied(db) if done.name not in known]
