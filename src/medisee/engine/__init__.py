"""The data engine: labelled images and curated knowledge in, question-answer records out.

`compose_records(index, entities, split, count, seed, mix)` is the door to the offline writer;
`referring_question(image, entity, rng)` gives a single question that names its target. A whole
data set is built by `medisee.engine.build.build(data, out)` and counted by
`medisee.engine.stats.read_stats(out)`.
"""

from medisee.engine.single import referring_question
from medisee.engine.writers import DEFAULT_MIX, compose_records

__all__ = ["DEFAULT_MIX", "compose_records", "referring_question"]
