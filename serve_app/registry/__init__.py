"""Which models exist.

Sources (folder.py, official.py) are scanned into a snapshot, which answers every lookup from
memory; catalog.py keeps it fresh for threads, live.py for an event loop.
"""
