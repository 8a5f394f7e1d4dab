"""A Kubernetes cluster in one process: a store with the API's rules, an HTTP server over it, and operators' behaviour.

`objects` is the store, `server` the HTTP API, `validation` the CRDs' schemas and CEL rules. In what JOS does with a
cluster, lightkube and kubectl cannot tell it from a real one; tests/contract/test_fake_cluster.py proves that.
"""
