"""The same as ledger.py, but built to lie: it acknowledges before it commits. Must be caught."""

import os
import sqlite3

ack = os.fdopen(int(os.environ["KILLPOINT_ACK_FD"]), "w", buffering=1)
conn = sqlite3.connect("ledger.db", timeout=20, isolation_level=None)
while True:
    try:
        conn.execute("PRAGMA journal_mode = WAL")
        break
    except sqlite3.OperationalError:
        # SQLite does not wait for another process that is switching at this moment.
        continue
conn.execute("PRAGMA synchronous = FULL")
conn.execute("CREATE TABLE IF NOT EXISTS entry (token TEXT PRIMARY KEY, amount INTEGER) STRICT")

for number in range(20):
    token = f"{os.getpid()}-{os.urandom(4).hex()}-{number}"
    conn.execute("BEGIN IMMEDIATE")
    conn.execute("INSERT INTO entry VALUES (?, ?)", (token, number))
    ack.write(f"ack {token}\n")
    conn.execute("COMMIT")
