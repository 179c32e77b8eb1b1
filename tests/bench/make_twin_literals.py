"""Writes twin_literals.json with PyTorch: loss, logits and gradients of the small case.

pip install '.[cpu,dev,bench]' && PYTHONPATH=. python tests/bench/make_twin_literals.py
"""

import json
import pathlib

from dsmoe_jax.bench import twin
from tests.bench import small_case


def main() -> None:
    batch, items = (twin.to_torch(part) for part in small_case.make_batch())
    spec = small_case.make_spec()
    student_weights = small_case.make_weights(small_case.STUDENT)
    teacher_weights = small_case.make_weights(small_case.TEACHER)
    weights = twin.from_tree(student_weights["params"], gradient=True)
    statistics = twin.from_tree(student_weights["batch_stats"], gradient=False)
    student = twin.Student(spec, weights, statistics)
    teacher = twin.Teacher(
        spec,
        twin.from_tree(teacher_weights["params"], gradient=False),
        twin.from_tree(teacher_weights["batch_stats"], gradient=False),
    )
    logit_BG = student.logits(batch.users, items, batch.scenario_B)
    teacher_logit_BG = teacher.logits(batch.users, items, batch.scenario_B)
    loss = twin.loss(logit_BG, teacher_logit_BG, small_case.DISTILL_WEIGHT)
    loss.backward()
    found = {
        "loss": loss.item(),
        "logit": logit_BG.detach()[:3].tolist(),
        "teacher_logit": teacher_logit_BG[:3].tolist(),
        "gradient_norm": small_case.norms({n: w.grad.numpy() for n, w in weights.items()}),
        "running_mean_norm": small_case.norms({n: s.numpy() for n, s in statistics.items()}),
    }
    path = pathlib.Path(__file__).with_name("twin_literals.json")
    path.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
