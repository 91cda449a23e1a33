"""A victim for `killpoint exec`: commits rows with the stock sqlite3 module, and acknowledges each.

    killpoint exec --copies 2 --db ledger.db \
        --check-sql 'SELECT count(*) FROM entry WHERE token = ?1' -- python3 scenarios/exec/ledger.py
"""

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
    conn.execute("COMMIT")
    # One line, one write, after the commit has returned: only now may anybody rely on it.
    ack.write(f"ack {token}\n")
