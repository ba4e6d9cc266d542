"""Reuse of chunks' KV inside unpatched vLLM: a KV connector, named by `kv_connector_module_path`. See connector.py."""
