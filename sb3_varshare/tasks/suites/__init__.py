"""One file per source of environments, each with a ``load(**options) -> TaskSource``."""
