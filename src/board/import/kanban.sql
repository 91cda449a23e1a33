-- A board of the Hermes agent with its columns as of June 2026: no foreign keys, no checks, links
-- and notes whose task is gone, two tasks of one idempotency key, a cycle, a task that is said to
-- run though its run has ended, and one that waits for a review after its run was completed.
CREATE TABLE tasks (id TEXT PRIMARY KEY, title TEXT NOT NULL, body TEXT, assignee TEXT,
  status TEXT NOT NULL, priority INTEGER DEFAULT 0, created_by TEXT, created_at INTEGER NOT NULL,
  started_at INTEGER, completed_at INTEGER, workspace_kind TEXT NOT NULL DEFAULT 'scratch',
  workspace_path TEXT, branch_name TEXT, claim_lock TEXT, claim_expires INTEGER, tenant TEXT,
  result TEXT, idempotency_key TEXT, consecutive_failures INTEGER NOT NULL DEFAULT 0,
  worker_pid INTEGER, last_failure_error TEXT, max_runtime_seconds INTEGER,
  last_heartbeat_at INTEGER, current_run_id INTEGER, workflow_template_id TEXT,
  current_step_key TEXT, skills TEXT, model_override TEXT, max_retries INTEGER,
  goal_mode INTEGER NOT NULL DEFAULT 0, goal_max_turns INTEGER, session_id TEXT);
CREATE TABLE task_links (parent_id TEXT NOT NULL, child_id TEXT NOT NULL,
  PRIMARY KEY (parent_id, child_id));
CREATE TABLE task_comments (id INTEGER PRIMARY KEY AUTOINCREMENT, task_id TEXT NOT NULL,
  author TEXT NOT NULL, body TEXT NOT NULL, created_at INTEGER NOT NULL);
CREATE TABLE task_events (id INTEGER PRIMARY KEY AUTOINCREMENT, task_id TEXT NOT NULL,
  run_id INTEGER, kind TEXT NOT NULL, payload TEXT, created_at INTEGER NOT NULL);
CREATE TABLE task_runs (id INTEGER PRIMARY KEY AUTOINCREMENT, task_id TEXT NOT NULL, profile TEXT,
  step_key TEXT, status TEXT NOT NULL, claim_lock TEXT, claim_expires INTEGER, worker_pid INTEGER,
  max_runtime_seconds INTEGER, last_heartbeat_at INTEGER, started_at INTEGER NOT NULL,
  ended_at INTEGER, outcome TEXT, summary TEXT, metadata TEXT, error TEXT);
CREATE TABLE task_attachments (id INTEGER PRIMARY KEY AUTOINCREMENT, task_id TEXT NOT NULL,
  filename TEXT NOT NULL, stored_path TEXT NOT NULL, content_type TEXT, size INTEGER,
  uploaded_by TEXT, created_at INTEGER NOT NULL);
CREATE TABLE kanban_notify_subs (task_id TEXT NOT NULL, platform TEXT NOT NULL,
  chat_id TEXT NOT NULL, thread_id TEXT NOT NULL DEFAULT '', user_id TEXT, notifier_profile TEXT,
  created_at INTEGER NOT NULL, last_event_id INTEGER NOT NULL DEFAULT 0,
  PRIMARY KEY (task_id, platform, chat_id, thread_id));
CREATE INDEX idx_events_run ON task_events (run_id, id);
INSERT INTO tasks (id, title, body, assignee, status, priority, created_by, created_at, tenant,
  result, idempotency_key, consecutive_failures, last_failure_error, max_runtime_seconds,
  current_run_id, skills, max_retries, worker_pid, claim_expires, workspace_kind, workspace_path)
VALUES
  ('t_0000000a', 'write the plan', 'in full', 'ann', 'done', 2, 'bob', 1000, 'acme', 'written',
   'plan', 0, NULL, 600, 1, '["prose"]', 5, NULL, NULL, 'dir', '/srv/plan'),
  ('t_0000000b', 'carry it out', NULL, NULL, 'running', 0, 'bob', 1001, NULL, NULL, 'do', 1,
   'exit 1', NULL, 3, NULL, NULL, 999999, 1700000000, 'scratch', NULL),
  ('t_0000000c', 'look at it', NULL, NULL, 'blocked', 0, 'bob', 1002, NULL, NULL, 'do', 0,
   'review_gate_blocked', NULL, NULL, NULL, NULL, NULL, NULL, 'scratch', NULL),
  ('t_0000000d', 'pay for it', NULL, 'ann', 'todo', -1, 'bob', 1003, NULL, NULL, NULL, 0, NULL,
   NULL, NULL, NULL, NULL, NULL, NULL, 'worktree', NULL),
  ('t_0000000e', 'forget it', NULL, NULL, 'scheduled', 0, NULL, 1004, NULL, NULL, NULL, 0, NULL,
   NULL, NULL, NULL, NULL, NULL, NULL, 'scratch', NULL),
  ('t_0000000f', 'who knows', NULL, NULL, 'limbo', 0, NULL, 1005, NULL, NULL, NULL, 0, NULL, NULL,
   NULL, NULL, NULL, NULL, NULL, 'scratch', NULL),
  ('t_00000010', 'half way', NULL, NULL, 'running', 0, NULL, 1006, NULL, NULL, NULL, 0, NULL, NULL,
   5, NULL, NULL, NULL, NULL, 'scratch', NULL);
INSERT INTO task_links VALUES ('t_0000000a', 't_0000000b'), ('t_0000000b', 't_0000000d'),
  ('t_0000000d', 't_0000000b'), ('t_0000000a', 't_gone');
INSERT INTO task_runs (id, task_id, profile, status, claim_expires, started_at, ended_at, outcome,
  summary, error) VALUES
  (1, 't_0000000a', 'ann', 'done', 1, 1010, 1020, 'completed', 'all of it', NULL),
  (2, 't_0000000b', 'cid', 'crashed', 1, 1021, 1022, 'crashed', NULL, 'exit 1'),
  (3, 't_0000000b', 'cid', 'running', 1700000000, 1023, NULL, NULL, NULL, NULL),
  (4, 't_0000000c', 'dan', 'done', 1, 1024, 1025, 'completed', 'looked', NULL),
  (5, 't_00000010', 'eve', 'done', 1, 1026, 1027, 'completed', 'the other half', NULL);
INSERT INTO task_events (id, task_id, run_id, kind, payload, created_at) VALUES
  (3, 't_0000000a', NULL, 'created', '{"by":"bob"}', 1000),
  (4, 't_0000000a', 1, 'completed', 'no json', 1020),
  (7, 't_gone', NULL, 'created', NULL, 1001),
  (9, 't_0000000b', 2, 'crashed', NULL, 1022);
INSERT INTO task_comments (task_id, author, body, created_at) VALUES
  ('t_0000000a', 'bob', 'good', 1030), ('t_gone', 'bob', 'bad', 1031);
INSERT INTO task_attachments (task_id, filename, stored_path, content_type, size, uploaded_by,
  created_at) VALUES ('t_0000000a', 'plan.md', 'attachments/x', 'text/markdown', 12, 'ann', 1032);
INSERT INTO kanban_notify_subs (task_id, platform, chat_id, created_at, last_event_id) VALUES
  ('t_0000000a', 'mail', '77', 1000, 7);
