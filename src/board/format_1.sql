-- A board of format 1, as it was made and written then.
CREATE TABLE commits (
    seq INTEGER PRIMARY KEY,
    session INTEGER NOT NULL,
    op INTEGER NOT NULL,
    kind TEXT NOT NULL,
    task_id INTEGER NOT NULL,
    token INTEGER,
    rows INTEGER NOT NULL
) STRICT;
CREATE TABLE tasks (
    id INTEGER PRIMARY KEY,
    title TEXT NOT NULL,
    priority INTEGER NOT NULL,
    status TEXT NOT NULL CHECK (status IN ('ready', 'running', 'done')),
    fence INTEGER NOT NULL DEFAULT 0 CHECK (fence >= 0),
    result TEXT,
    created_seq INTEGER NOT NULL,
    changed_seq INTEGER NOT NULL
) STRICT;
CREATE TABLE runs (
    task_id INTEGER NOT NULL REFERENCES tasks (id),
    token INTEGER NOT NULL CHECK (token > 0),
    worker TEXT NOT NULL,
    lease_until_ms INTEGER NOT NULL,
    heartbeats INTEGER NOT NULL DEFAULT 0,
    started_seq INTEGER NOT NULL,
    changed_seq INTEGER NOT NULL,
    ended_seq INTEGER,
    outcome TEXT CHECK (outcome IN ('completed', 'taken-back')),
    PRIMARY KEY (task_id, token),
    CHECK ((ended_seq IS NULL) = (outcome IS NULL))
) STRICT, WITHOUT ROWID;
CREATE TABLE events (
    id INTEGER PRIMARY KEY,
    task_id INTEGER NOT NULL REFERENCES tasks (id),
    token INTEGER,
    kind TEXT NOT NULL,
    payload TEXT NOT NULL,
    commit_seq INTEGER NOT NULL
) STRICT;
CREATE INDEX tasks_ready ON tasks (priority DESC, id) WHERE status = 'ready';
CREATE UNIQUE INDEX runs_live ON runs (task_id) WHERE ended_seq IS NULL;
CREATE INDEX runs_lease ON runs (lease_until_ms, task_id) WHERE ended_seq IS NULL;
CREATE INDEX events_task ON events (task_id, id);
PRAGMA application_id = 1751282276;
PRAGMA user_version = 1;
INSERT INTO commits VALUES (1, 7, 1, 'create', 1, NULL, 1), (2, 7, 2, 'claim', 1, 1, 0),
  (3, 7, 3, 'complete', 1, 1, 0), (4, 7, 4, 'create', 2, NULL, 1), (5, 7, 5, 'claim', 2, 1, 0),
  (6, 7, 6, 'create', 3, NULL, 1);
INSERT INTO tasks VALUES (1, 'paint', 3, 'done', 1, 'white', 1, 3),
  (2, 'dig', 0, 'running', 1, NULL, 4, 5), (3, 'rest', -1, 'ready', 0, NULL, 6, 6);
INSERT INTO runs VALUES (1, 1, 'ann', 1700000000000, 0, 2, 3, 3, 'completed'),
  (2, 1, 'bob', 1700000000000, 0, 5, 5, NULL, NULL);
INSERT INTO events VALUES (1, 1, NULL, 'created', 'paint', 1), (2, 2, NULL, 'created', 'dig', 4),
  (3, 3, NULL, 'created', 'rest', 6);
