"""How bad a candidate is, in nats per token.

`losses.py`: `Fitness`, `LossHead`, `loss_head`, `place`: losses of blocks from last hidden states.
`head.py`: `LinearHead`: log-sum-exp and expected weights in chunks of the vocabulary.
`teacher.py`: `TeacherBlock`: what a KL divergence needs of the base model.
"""

from evoray.fitness.losses import Fitness, LossHead, PlacedTeacher, loss_head, place
from evoray.fitness.teacher import TeacherBlock, TeacherForm

__all__ = ["Fitness", "LossHead", "PlacedTeacher", "TeacherBlock", "TeacherForm", "loss_head", "place"]
