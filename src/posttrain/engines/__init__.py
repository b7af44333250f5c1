"""Who writes responses: the engine protocol, a local engine, a scripted one for tests, `sample`, `chat`."""
