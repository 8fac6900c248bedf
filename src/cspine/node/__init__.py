"""The DICOM node: CT studies come in over the network, are judged durably, and the results go back.

What comes in: ``settings`` (one TOML file), ``service`` (the DICOM service) with its ``limits`` and ``tls``,
``spool`` and ``arrivals`` (what was accepted, on disk), ``privacy`` and ``audit`` (what is told about it).

What goes on: ``work`` (what follows on what), run by ``durable`` (DBOS); ``child`` and ``supervise`` (a judgement in a
process of its own); ``ledger`` (what became of every study). What goes out: ``deliver``, ``notify``, ``shelf``. What is
fetched: ``pull``. What is seen of it: ``status``, ``metrics``, ``drift``, ``check``. ``node`` is all of it.
"""
