"""The questions of the web page: SQL on the documented views and tables, for each run's database.

Values come as they are recorded, and the page formats them, so an answer equals the view that it is
from. A database holds one run; its row of `runs` is the first.
"""

from __future__ import annotations

import msgspec

from watcher.decision.ties import FEW_OBJECTS


class Query(msgspec.Struct, frozen=True):
    """A query under a name, and what it answers.

    Attributes:
        title: What the answer is.
        sql: May have named parameters, such as `:checkpoint`.
        about: A sentence on it, shown above the answer.
    """

    title: str
    sql: str
    about: str = ""


_NOW = "(SELECT fingerprint FROM runs LIMIT 1)"

_POINT = """global_step, score, checkpoint,
    CASE WHEN rank = 1 THEN 'best' WHEN rank > 1 THEN 'promoted' ELSE 'evaluated' END AS place,
    rank, evaluated_at, generation"""

# A sentence, or NULL where every category has enough objects.
CAUTION = f"""
SELECT CASE WHEN count(*) > 0 THEN
    CASE count(*) WHEN 1 THEN 'a category has' ELSE count(*) || ' categories have' END
    || ' fewer than {FEW_OBJECTS} objects: ' || group_concat(said, ', ') FILTER (WHERE place <= 5)
    || CASE WHEN count(*) > 5 THEN ' and ' || (count(*) - 5) || ' more' ELSE '' END
    || '; scores come out too high there, and intervals hold less often than they say' END AS said
FROM (
    SELECT category || ' (' || min(objects) || ')' AS said,
        row_number() OVER (ORDER BY min(objects), category) AS place
    FROM replicates WHERE evaluation_id = (SELECT max(evaluation_id) FROM replicates)
        AND category != '' AND objects BETWEEN 1 AND {FEW_OBJECTS - 1}
    GROUP BY category ORDER BY place)"""

# The metric that the bars show: the one that ranks, or COCO's mAP where that has no categories.
_CATEGORY_METRIC = """
shown AS (
    SELECT m.name FROM metrics m
    WHERE m.evaluation_id IN (SELECT evaluation_id FROM places) AND m.category != ''
    ORDER BY m.name = (SELECT metric FROM runs LIMIT 1) DESC,
        m.name = 'DetectionBoxes_Precision/mAP' DESC, m.name
    LIMIT 1
)"""

SHOWN: dict[str, Query] = {
    "score_by_step": Query(
        "Score by step",
        f"""
SELECT {_POINT}, low, high
FROM history WHERE score IS NOT NULL AND score != -1
ORDER BY generation, global_step, discovered_at""",
        "Every evaluation that can rank, by generation and step, its place in best/, and the"
        " interval of its score.",
    ),
    "score_close_up": Query(
        "Score by step: close-up",
        f"""
WITH scored AS (
    SELECT global_step, score, checkpoint, rank, evaluated_at, generation,
        max(score) OVER onwards - min(score) OVER onwards AS spread FROM history
    WHERE score IS NOT NULL AND score != -1
        AND generation = (SELECT max(generation) FROM history WHERE score IS NOT NULL)
    WINDOW onwards AS (ORDER BY global_step DESC)
), near AS MATERIALIZED (
    SELECT * FROM scored WHERE spread < (SELECT max(spread) FROM scored) / 4)
SELECT {_POINT}
FROM near
WHERE (SELECT count(*) >= 3 AND max(spread) > 0 AND coalesce(min(rank), 0) = 1 FROM near)
ORDER BY global_step""",
        "The last evaluations, where they take less than a quarter of the height above.",
    ),
    "categories_of_best": Query(
        "Categories: best and last",
        f"""
WITH places AS (
    SELECT 'best' AS place, e.id AS evaluation_id FROM leaderboard l
    JOIN all_checkpoints c ON c.sha256 = l.sha256
    JOIN evaluations e ON e.checkpoint_id = c.id AND e.fingerprint = {_NOW}
    WHERE l.rank = 1
    UNION ALL
    SELECT 'last', id FROM (
        SELECT e.id FROM evaluations e JOIN checkpoints c ON c.id = e.checkpoint_id
        WHERE e.fingerprint = {_NOW}
        ORDER BY c.generation DESC, c.global_step DESC, c.id DESC LIMIT 1)
), {_CATEGORY_METRIC.strip()}
SELECT m.category, max(CASE WHEN p.place = 'best' THEN m.value END) AS best,
    max(CASE WHEN p.place = 'last' THEN m.value END) AS last, m.name AS metric,
    max(CASE WHEN p.place = 'best' THEN x.low END) AS low,
    max(CASE WHEN p.place = 'best' THEN x.high END) AS high, max(x.objects) AS objects,
    ({CAUTION.strip()}) AS caution
FROM places p JOIN metrics m ON m.evaluation_id = p.evaluation_id
LEFT JOIN replicates x
    ON x.evaluation_id = m.evaluation_id AND x.name = m.name AND x.category = m.category
WHERE m.category != '' AND m.name = (SELECT name FROM shown) AND m.value != -1
GROUP BY m.category ORDER BY best DESC, m.category""",
        "The categories of the best checkpoint with their intervals, and of the last one in step"
        " order.",
    ),
    "promoted": Query(
        "Leaderboard",
        """
SELECT l.rank, l.checkpoint, l.global_step, l.score, l.low, l.high,
    CASE WHEN l.score != b.score THEN abs(b.score - l.score) END AS behind,
    CASE WHEN l.rank_low != l.rank_high THEN l.rank_low || '-' || l.rank_high ELSE l.rank_low END
        || CASE WHEN l.tied AND l.rank_high > 1 THEN ', tie' ELSE '' END AS ranks, l.p_best,
    l.metric, l.evaluated_at, l.path
FROM leaderboard l LEFT JOIN best b ON b.run = l.run""",
        "The checkpoints in best/, best first, how far each is behind the best, the interval of"
        " its score, the ranks that it may have, and how often it is the first of eval sets drawn"
        " from this one.",
    ),
    "recent_events": Query(
        "Recent events",
        "SELECT at, kind, checkpoint, message FROM events ORDER BY id DESC LIMIT 15",
        "What the watcher noticed and did, the latest first.",
    ),
    "failures": Query(
        "Failures",
        """
SELECT checkpoint, global_step, state, reason FROM history
WHERE state IN ('failed', 'corrupt', 'missed')
    OR (state = 'scored' AND coalesce(score, -1) = -1) ORDER BY discovered_at DESC""",
        "Checkpoints without a score that should have one, and why.",
    ),
}

ASKED: dict[str, Query] = {
    "waiting": Query(
        "What waits",
        """
SELECT checkpoint, global_step, state, discovered_at FROM history
WHERE state IN ('pending', 'leased')
ORDER BY state, generation = (SELECT max(generation) FROM history WHERE sha256 IS NOT NULL)
    OR sha256 IN (SELECT sha256 FROM boards) DESC, global_step""",
        "The queue in the order in which it is evaluated; what is leased is being evaluated.",
    ),
    "metrics_of": Query(
        "All metrics of a checkpoint",
        """
SELECT metric, category, value FROM metric_values WHERE checkpoint = :checkpoint
ORDER BY category IS NOT NULL, metric, category""",
        "Overall metrics first. Names are those of the history, such as ckpt-12.",
    ),
    "metric_by_step": Query(
        "A metric by step",
        """
SELECT global_step, checkpoint, value FROM metric_values
WHERE metric = :metric AND category IS NULL ORDER BY global_step""",
        "Such as Loss/total_loss; the table metrics has all names.",
    ),
    "compare": Query(
        "Two checkpoints compared",
        """
SELECT a.metric, a.category, a.value AS first, b.value AS second, b.value - a.value AS change
FROM metric_values a
JOIN metric_values b ON b.metric = a.metric AND b.category IS a.category
WHERE a.checkpoint = :first AND b.checkpoint = :second
ORDER BY abs(b.value - a.value) DESC, a.metric""",
        "The largest changes first.",
    ),
    "slowest": Query(
        "The slowest evaluations",
        """
SELECT checkpoint, global_step, eval_seconds, evaluated_at FROM history
WHERE eval_seconds IS NOT NULL ORDER BY eval_seconds DESC LIMIT 20""",
    ),
    "states": Query(
        "Checkpoints by state",
        "SELECT state, CAST(total(saves) AS INTEGER) AS checkpoints FROM checkpoints GROUP BY state"
        " ORDER BY 2 DESC",
    ),
}

_STOP = """(SELECT CASE kind WHEN 'stop' THEN message END FROM events
    WHERE kind IN ('stop', 'stop_withdrawn') ORDER BY id DESC LIMIT 1)"""

CARDS: dict[str, Query] = {
    "card_best": Query(
        "Best",
        """
SELECT (SELECT score FROM best) AS value,
    coalesce((SELECT checkpoint || ', step ' || global_step FROM best), 'nothing is promoted yet')
        AS note""",
    ),
    "card_last": Query(
        "Last",
        """
SELECT value, note FROM (
    SELECT 0 AS empty, score AS value, checkpoint || ', step ' || global_step AS note FROM (
        SELECT * FROM history WHERE evaluated_at IS NOT NULL AND score IS NOT NULL AND score != -1
        ORDER BY generation DESC, global_step DESC, discovered_at DESC LIMIT 1)
    UNION ALL SELECT 1, NULL, 'nothing is evaluated yet')
ORDER BY empty LIMIT 1""",
    ),
    "card_queue": Query(
        "Queue",
        """
SELECT coalesce(sum(state = 'pending'), 0) AS value,
    CASE coalesce(sum(state = 'leased'), 0) WHEN 0 THEN 'waiting'
        ELSE 'waiting, and ' || sum(state = 'leased') || ' being evaluated' END AS note
FROM history""",
    ),
    "card_patience": Query(
        "Patience left",
        """
WITH now AS (
    SELECT coalesce(patience_left, patience_steps_left) AS left_over,
        CASE WHEN patience_left IS NULL THEN 'steps' ELSE 'evaluations' END AS unit,
        coalesce(patience, patience_steps) AS patience, state = 'stopped' AS stopped, message,
        (SELECT json_extract(status, '$.pid') FROM runs LIMIT 1) AS pid
    FROM run_state LIMIT 1)
SELECT CASE WHEN stopped AND message LIKE 'no improvement%' THEN 0 ELSE left_over END AS value,
    CASE WHEN stopped THEN 'training is to stop: ' || message
        WHEN left_over IS NOT NULL THEN unit || ' without improvement'
        WHEN patience IS NULL THEN 'no patience is set'
        WHEN pid IS NULL THEN 'no watcher is running' ELSE 'not counted yet' END AS note
FROM now""",
    ),
    "card_state": Query(
        "Watcher",
        f"""
WITH now AS (
    SELECT json_extract(status, '$.pid') AS pid, json_extract(status, '$.worker') AS worker,
        json_extract(status, '$.checkpoint') AS checkpoint, json_extract(status, '$.done') AS done,
        json_extract(status, '$.total') AS total, json_extract(status, '$.problem') AS problem,
        json_extract(status, '$.ended') AS ended, {_STOP} AS stop
    FROM runs LIMIT 1)
SELECT CASE WHEN problem IS NOT NULL THEN 'problem'
        WHEN pid IS NULL AND ended IS NOT NULL THEN 'failed'
        WHEN pid IS NULL THEN CASE WHEN stop IS NULL THEN 'not running' ELSE 'ended' END
        WHEN worker = 'ready' THEN 'idle' ELSE coalesce(worker, 'starting') END AS value,
    CASE WHEN problem IS NOT NULL THEN problem
        WHEN worker = 'evaluating'
            THEN checkpoint || coalesce(', ' || done || ' of ' || total || ' images', '')
        WHEN pid IS NULL AND ended IS NOT NULL THEN 'ended with an error: ' || ended
        WHEN pid IS NULL THEN 'what is shown is what it recorded'
        ELSE 'process ' || pid END AS note
FROM now""",
    ),
}

FRESHNESS = Query(
    "When something was recorded last",
    # Whatever changes writes an event or the status.
    """
SELECT max(at) AS recorded_at, max(id) AS last_event, (SELECT status FROM runs LIMIT 1) AS status,
    EXISTS (SELECT 1 FROM evaluations) AS evaluated
FROM events""",
)

# Of a long run so many points are enough for a curve as small as that.
_SMALL = 300

HOME = Query(
    "A run at a glance",
    f"""
WITH watcher AS ({CARDS["card_state"].sql}), first AS ({CARDS["card_best"].sql}),
latest AS ({CARDS["card_last"].sql}), queue AS ({CARDS["card_queue"].sql}),
patience AS ({CARDS["card_patience"].sql}),
points AS (
    SELECT *, row_number() OVER () AS place_in, count(*) OVER () AS many
    FROM ({SHOWN["score_by_step"].sql})),
unscored AS (
    SELECT count(*) || ' ' || state AS said FROM history
    WHERE state IN ('failed', 'corrupt', 'missed') GROUP BY state
    UNION ALL SELECT count(*) || ' whose score cannot rank' FROM history
    WHERE state = 'scored' AND coalesce(score, -1) = -1 HAVING count(*) > 0)
SELECT (SELECT metric FROM runs LIMIT 1) AS metric, watcher.value AS state,
    CASE WHEN watcher.value NOT IN ('problem', 'failed') THEN watcher.note END AS state_note,
    first.value AS best, first.note AS best_note, latest.value AS last, latest.note AS last_note,
    queue.value AS queue, queue.note AS queue_note, patience.value AS patience,
    CASE WHEN patience.note NOT LIKE 'training is to stop%' THEN patience.note END AS patience_note,
    (SELECT json_group_array(json_array(generation, global_step, score, place = 'best'))
        FROM points WHERE (many - place_in) % (many / {_SMALL} + 1) = 0 OR place = 'best') AS curve,
    json_array(
        CASE watcher.value WHEN 'problem' THEN 'problem: ' || watcher.note
            WHEN 'failed' THEN 'the watcher ' || watcher.note END,
        (SELECT CASE WHEN watcher.value != 'problem' AND state = 'stopped'
            THEN 'early stop: ' || message END FROM run_state),
        (SELECT 'without a score: ' || group_concat(said, ', ') FROM unscored),
        ({CAUTION.strip()})) AS warnings
FROM watcher, first, latest, queue, patience""",
)

OVER_RUNS: dict[str, Query] = {
    "summary": Query(
        "Runs",
        """
SELECT r.name AS run, b.checkpoint AS best, b.score, b.global_step AS step, r.metric,
    (SELECT count(*) FROM history WHERE state = 'scored') AS scored,
    (SELECT count(*) FROM history WHERE state IN ('pending', 'leased')) AS waiting,
    (SELECT count(*) FROM history WHERE state IN ('failed', 'corrupt')) AS failed,
    (SELECT max(at) FROM events) AS recorded_at
FROM runs r LEFT JOIN best b LIMIT 1""",
    ),
}
