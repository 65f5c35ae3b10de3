"""The EMA teacher of METHOD 1.5: the whole state, always in evaluation mode, never a gradient."""

from collections.abc import Callable
from types import ModuleType

import numpy as np
import pytest
import torch

from crossmost.adaptation.teacher import make_teacher, update_teacher
from crossmost.models.student import Student

MakeStudent = Callable[..., Student]


def disturb(student: Student) -> None:
    with torch.no_grad():
        for value in student.state_dict().values():
            if value.is_floating_point():
                value.add_(torch.rand_like(value))


def test_the_teacher_starts_as_the_student_in_memory_of_its_own(make_student: MakeStudent) -> None:
    student = make_student()
    teacher = make_teacher(student)
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    assert before.keys() == student.state_dict().keys()
    assert all(torch.equal(before[name], value) for name, value in student.state_dict().items())
    disturb(student)
    assert all(torch.equal(before[name], value) for name, value in teacher.state_dict().items())


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.99, 0.9998, 1.0])
def test_every_entry_of_the_state_moves_by_the_rule(
    make_student: MakeStudent, reference: ModuleType, decay: float
) -> None:
    student = make_student()
    teacher = make_teacher(student)
    disturb(student)
    before = {name: reference.f64(value) for name, value in teacher.state_dict().items()}
    update_teacher(teacher, student, decay)
    for name, value in teacher.state_dict().items():
        if value.is_floating_point():
            expected = decay * before[name] + (1 - decay) * reference.f64(student.state_dict()[name])
            np.testing.assert_allclose(value.numpy(), expected, rtol=1e-6, atol=1e-6)


def test_batchnorm_statistics_and_counters_follow(make_student: MakeStudent) -> None:
    student = make_student()
    teacher = make_teacher(student)
    student.train()
    student.point_encoder.encoder(5 + torch.randn(2, 4, 6, 3))
    update_teacher(teacher, student, 0.5)
    theirs, ours = (model.point_encoder.encoder.first_conv[1] for model in (student, teacher))
    assert float(theirs.running_mean.abs().max()) > 0
    torch.testing.assert_close(ours.running_mean, theirs.running_mean / 2)
    torch.testing.assert_close(ours.running_var, (theirs.running_var + 1) / 2)
    assert int(ours.num_batches_tracked) == int(theirs.num_batches_tracked) == 1


def test_the_teacher_stays_in_evaluation_mode_and_takes_no_gradient(make_student: MakeStudent) -> None:
    student = make_student()
    teacher = make_teacher(student.train())
    assert student.training
    assert all(parameter.requires_grad for parameter in student.parameters())
    update_teacher(teacher, student, 0.9)
    assert not any(module.training for module in teacher.modules())
    assert not any(parameter.requires_grad for parameter in teacher.parameters())


def test_the_student_is_only_read(make_student: MakeStudent) -> None:
    student = make_student()
    teacher = make_teacher(student)
    disturb(student)
    before = {name: value.clone() for name, value in student.state_dict().items()}
    update_teacher(teacher, student, 0.9)
    assert all(torch.equal(before[name], value) for name, value in student.state_dict().items())


def test_after_200_published_steps_22_percent_of_the_first_teacher_are_left(
    make_student: MakeStudent, reference: ModuleType
) -> None:
    student = make_student()
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.fill_(1.0)
    teacher = make_teacher(student)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.zero_()
    for step in range(200):
        update_teacher(teacher, student, reference.ema_decay(step))
    for parameter in teacher.parameters():
        np.testing.assert_allclose(parameter.numpy(), reference.initial_teacher_left(200), rtol=1e-4)
    assert float(teacher.logit_scale) == pytest.approx(0.22, abs=0.005)


@pytest.mark.parametrize("share", [0.25, 0.5, 1.0])
def test_held_to_the_base_it_is_the_same_blend_of_the_base_and_the_average(
    make_student: MakeStudent, share: float
) -> None:
    student = make_student()
    base = {name: value.clone() for name, value in student.state_dict().items()}
    held, free = make_teacher(student), make_teacher(student)
    for _ in range(3):
        disturb(student)
        update_teacher(held, student, 0.8, base, share)
        update_teacher(free, student, 0.8)
    averages = free.state_dict()
    for name, value in held.state_dict().items():
        if value.is_floating_point():
            expected = (1 - share) * base[name].double() + share * averages[name].double()
            torch.testing.assert_close(value.double(), expected, rtol=1e-5, atol=1e-6)
