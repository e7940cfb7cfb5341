"""How bad a candidate is, in nats per token.

`losses.py`: `Fitness`, `LossHead`, `loss_head`: losses of blocks from last hidden states.
`topk.py`: `TopLosses`: the same over the base model's top tokens.
`head.py`: `LinearHead`: log-sum-exp and expected weights in chunks of the vocabulary; `OwnPathHead`.
`teacher.py`: `TeacherBlock`: what a KL divergence needs of the base model.
`batch.py`: `place`: the tokens of a batch as one run, and back to blocks.
`influence.py`: `INFLUENCES`, `influence`: how much a part of a model changes the hidden state.
"""

from evoray.fitness.batch import PlacedTeacher, place
from evoray.fitness.influence import INFLUENCES, influence
from evoray.fitness.losses import Fitness, LossHead, loss_head
from evoray.fitness.teacher import TeacherBlock, TeacherForm
from evoray.fitness.topk import TopLosses

__all__ = [
    "INFLUENCES",
    "Fitness",
    "LossHead",
    "PlacedTeacher",
    "TeacherBlock",
    "TeacherForm",
    "TopLosses",
    "influence",
    "loss_head",
    "place",
]
