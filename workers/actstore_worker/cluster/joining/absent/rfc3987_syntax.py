"""Makes jsonschema, which every process of Ray imports, do without a check of addresses that none of them uses.

The real library compiles a grammar at its import, which takes a process three CPU seconds. Jupyter brings it.
"""

raise ImportError("rfc3987_syntax is left out of processes of Ray", name="rfc3987_syntax")
