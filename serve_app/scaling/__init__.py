"""How many detectors there should be: by their queues, and by what their models need to stay.

working_set.py counts in each replica what is asked for again and again, decision.py turns the sum
into a number of replicas, policy.py is what Ray Serve calls. docs/scaling.md explains the knobs.
"""
