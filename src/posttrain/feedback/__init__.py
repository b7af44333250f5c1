"""Who judges responses: the judge protocol, verifiers, reward models, and `judge`."""
