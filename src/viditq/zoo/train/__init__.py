"""How the bundled pipelines and their judge were trained: ``python -m viditq.zoo.train --help``."""
