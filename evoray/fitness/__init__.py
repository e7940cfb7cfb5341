"""How bad a candidate is, in nats per token.

`losses.py`: `Fitness`, `LossHead`, `loss_head`, `place`: losses of blocks from last hidden states.
`head.py`: `LinearHead`: log-sum-exp and expected weights in chunks of the vocabulary.
`influence.py`: `INFLUENCES`, `influence`: how much a part of a model changes the hidden state.
`teacher.py`: `TeacherBlock`: what a KL divergence needs of the base model.
"""

from evoray.fitness.influence import INFLUENCES, influence
from evoray.fitness.losses import Fitness, LossHead, PlacedTeacher, loss_head, place
from evoray.fitness.teacher import TeacherBlock, TeacherForm

__all__ = [
    "INFLUENCES",
    "Fitness",
    "LossHead",
    "PlacedTeacher",
    "TeacherBlock",
    "TeacherForm",
    "influence",
    "loss_head",
    "place",
]
