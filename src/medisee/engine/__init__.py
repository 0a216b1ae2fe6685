"""The data engine: labelled images and curated knowledge in, question-answer records out.

`compose_records(index, entities, split, count, seed, mix)` is the door to the offline writer.
"""

from medisee.engine.writers import DEFAULT_MIX, compose_records

__all__ = ["DEFAULT_MIX", "compose_records"]
