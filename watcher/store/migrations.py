"""The database's tables, as migrations made them; migrations are only ever added.

Times that people read are ISO 8601 in UTC; times that the daemon computes with are seconds since
the epoch and end in `_at_seconds`. A migration changes tables alone: the views are written once,
in `views`, and made anew after all of them.
"""

from __future__ import annotations

import contextlib
import sqlite3
from functools import partial
from pathlib import Path

import msgspec

from watcher.decision.generation import Life, Save, generation_of, with_save
from watcher.errors import StoreError
from watcher.store.relocation import inside, with_paths
from watcher.store.sqlite import Database, Migrations
from watcher.store.views import VIEWS

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


@migrations()
def m001_first_schema(db: Database) -> None:
    """Create the tables."""
    for statement in _TABLES:
        db.execute(statement)


@migrations()
def m002_long_runs(db: Database) -> None:
    """Find the pinned checkpoints and those of one name without reading all there ever were."""
    db.execute(
        "CREATE INDEX checkpoints_pinned ON checkpoints (run_id, id) WHERE pin_path IS NOT NULL"
    )
    db.execute("CREATE INDEX checkpoints_by_name ON checkpoints (run_id, name)")


_BOARDS = (
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
)


@migrations()
def m003_boards(db: Database) -> None:
    """Several boards, checkpoints kept for another reason, and why one was not promoted."""
    for statement in _BOARDS:
        db.execute(statement)


_GENERATIONS = (
    "ALTER TABLE checkpoints ADD COLUMN generation INTEGER NOT NULL DEFAULT 1",
    "ALTER TABLE checkpoints ADD COLUMN saved_at_seconds REAL",
    "ALTER TABLE runs ADD COLUMN resumed_generation INTEGER NOT NULL DEFAULT 1",
    # All that tells lives apart, so that each new row is not compared with a table of all.
    "CREATE INDEX checkpoints_by_generation ON checkpoints (run_id, generation, saved_at_seconds,"
    " save_counter, global_step) WHERE sha256 IS NOT NULL",
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


@migrations()
def m008_run_state(db: Database) -> None:
    """What stopping decided last: `reason`, the code of the rule or null; `patience_left`."""
    db.execute("ALTER TABLE runs ADD COLUMN stopping TEXT NOT NULL DEFAULT '{}'")


@migrations()
def m009_missed_count(db: Database) -> None:
    """Of how many saves a row tells: those that nobody saw, one after another, share one."""
    db.execute("ALTER TABLE checkpoints ADD COLUMN saves INTEGER NOT NULL DEFAULT 1")


@migrations()
def m010_relative_paths(db: Database) -> None:
    """Record paths relative to MODEL_DIR where they lie inside, so that a run can be moved."""
    for run in list(db.query("SELECT id, model_dir, settings FROM runs")):
        model_dir = Path(run["model_dir"])
        recorded = partial(inside, model_dir=model_dir)
        settings = with_paths(msgspec.json.decode(run["settings"]), recorded)
        encoded = msgspec.json.encode(settings).decode()
        db.execute("UPDATE runs SET settings = ? WHERE id = ?", [encoded, run["id"]])
        promoted = db.query("SELECT id, path FROM promotions WHERE run_id = ?", [run["id"]])
        for row in list(promoted):
            changed = [recorded(row["path"]), row["id"]]
            db.execute("UPDATE promotions SET path = ? WHERE id = ?", changed)


_REPLICATES = (
    "ALTER TABLE evaluations ADD COLUMN low REAL",
    "ALTER TABLE evaluations ADD COLUMN high REAL",
    # With rowids, for what is drawn is larger than a page should hold.
    """
    CREATE TABLE replicates (
        evaluation_id INTEGER NOT NULL REFERENCES evaluations(id),
        scheme TEXT NOT NULL,
        images INTEGER NOT NULL,
        count INTEGER NOT NULL,
        level REAL NOT NULL,
        name TEXT NOT NULL,
        category TEXT NOT NULL DEFAULT '',
        objects INTEGER NOT NULL,
        low REAL NOT NULL,
        high REAL NOT NULL,
        drawn BLOB,
        PRIMARY KEY (evaluation_id, name, category)
    )
    """,
    "CREATE INDEX replicates_of_categories ON replicates (evaluation_id)"
    " WHERE category != '' AND drawn NOT NULL",
    """
    CREATE TABLE influences (
        evaluation_id INTEGER PRIMARY KEY REFERENCES evaluations(id),
        influence BLOB NOT NULL
    )
    """,
    """
    CREATE TABLE image_names (
        fingerprint TEXT PRIMARY KEY,
        names TEXT NOT NULL
    )
    """,
    """
    CREATE TABLE standings (
        evaluation_id INTEGER PRIMARY KEY REFERENCES evaluations(id),
        tied INTEGER NOT NULL,
        p_best REAL NOT NULL,
        p_top_k REAL NOT NULL,
        rank_low INTEGER NOT NULL,
        rank_high INTEGER NOT NULL
    )
    """,
    "CREATE INDEX evaluations_by_score ON evaluations (fingerprint, score)",
)


@migrations()
def m011_replicates(db: Database) -> None:
    """Scores on eval sets drawn anew, their intervals, and how the best stand to each other."""
    for statement in _REPLICATES:
        db.execute(statement)


_AVERAGES = (
    # Averages of checkpoints lie in the same table, so that they are evaluated and promoted as any
    # other; `checkpoints` is a view from now on, of what the trainer saved alone.
    "ALTER TABLE checkpoints RENAME TO all_checkpoints",
    "ALTER TABLE all_checkpoints ADD COLUMN kind TEXT NOT NULL DEFAULT 'saved'",
    """
    CREATE TABLE average_jobs (
        id INTEGER PRIMARY KEY,
        run_id INTEGER NOT NULL REFERENCES runs(id),
        asked TEXT NOT NULL,
        greedy INTEGER NOT NULL,
        first INTEGER,
        candidates TEXT NOT NULL,
        parents TEXT NOT NULL,
        name TEXT NOT NULL,
        state TEXT NOT NULL CHECK (state IN ('waiting', 'written', 'failed')),
        reason TEXT,
        attempts INTEGER NOT NULL DEFAULT 0,
        checkpoint_id INTEGER REFERENCES all_checkpoints(id),
        created_at TEXT NOT NULL
    )
    """,
)


@migrations()
def m012_averages(db: Database) -> None:
    """What is averaged, of which checkpoints, and what came of it."""
    for statement in _AVERAGES:
        db.execute(statement)


@migrations()
def m013_batch_norm(db: Database) -> None:
    """Of how many training images the statistics of an average are computed anew."""
    db.execute("ALTER TABLE average_jobs ADD COLUMN recompute_batch_norm INTEGER")
    db.execute("ALTER TABLE average_jobs ADD COLUMN batch_norm TEXT")


_MACHINES = (
    """
    CREATE TABLE machines (
        id INTEGER PRIMARY KEY,
        parts TEXT NOT NULL UNIQUE,
        first_seen_at TEXT NOT NULL
    )
    """,
    # NULL where it is not known: of an earlier version, or of a worker that does not tell.
    "ALTER TABLE evaluations ADD COLUMN machine_id INTEGER REFERENCES machines(id)",
    """
    CREATE TABLE machine_references (
        fingerprint TEXT PRIMARY KEY,
        machine_id INTEGER NOT NULL REFERENCES machines(id)
    )
    """,
    """
    CREATE TABLE machine_proofs (
        id INTEGER PRIMARY KEY,
        fingerprint TEXT NOT NULL,
        machine_id INTEGER NOT NULL REFERENCES machines(id),
        against_id INTEGER NOT NULL REFERENCES machines(id),
        checkpoint_id INTEGER NOT NULL REFERENCES all_checkpoints(id),
        device TEXT NOT NULL,
        proved_at TEXT NOT NULL,
        equal INTEGER NOT NULL,
        compared INTEGER NOT NULL,
        differences TEXT NOT NULL,
        largest REAL,
        tolerance REAL,
        UNIQUE (fingerprint, machine_id, against_id)
    )
    """,
)


@migrations()
def m014_machines(db: Database) -> None:
    """On which machine each score was measured, and whether another one measures the same."""
    for statement in _MACHINES:
        db.execute(statement)


def refuse_foreign(connection: sqlite3.Connection, path: Path) -> None:
    """Raise StoreError for a database of a later version, or of another program."""
    db = Database(connection)
    with contextlib.closing(Database(memory=True)) as empty:
        known = {migration.name for migration in migrations.pending(empty)}
    applied = [done.name for done in migrations.applied(db)]
    if later := [name for name in applied if name not in known]:
        raise StoreError(
            f"database {path} is of a later version of checkpoint-watcher"
            f" (it has {', '.join(later)})",
            hint="use that version, or begin anew in another folder with --state-dir",
        )
    if db.table_names() and not applied:
        raise StoreError(
            f"database {path} is of another program: it has no tables of checkpoint-watcher",
            hint="remove it if nobody needs it, or set --state-dir to another folder",
        )


def migrate(connection: sqlite3.Connection) -> None:
    """Bring tables and views up to date, all of it or nothing; writes only where there is need."""
    db = Database(connection)
    wanted = {view.split()[2]: view.strip() for view in VIEWS}  # CREATE VIEW name
    present = list(db.query("SELECT name, sql FROM sqlite_master WHERE type = 'view'"))
    if not migrations.pending(db) and wanted.items() <= {tuple(one.values()) for one in present}:
        return
    with db.atomic():
        # First: a table that a view asks cannot be renamed, nor any beside a view that lacks one.
        for one in present:
            db.execute(f"DROP VIEW {_quoted(one['name'])}")
        migrations.apply(db)
        for view in VIEWS:
            db.execute(view)
        for one in present:  # those that a user made
            if one["name"] not in wanted:
                db.execute(one["sql"])


def _quoted(name: str) -> str:
    return '"{}"'.format(name.replace('"', '""'))
