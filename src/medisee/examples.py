"""Real medical images for a first try: those that come with pydicom, each with a question.

They lie in pydicom's own wheel, so nothing is downloaded. `example:NAME` stands for one wherever
an image is asked for. Test patterns of the wheel, and images too small, too dark or too
compressed to tell what they show, are left out.
"""

from __future__ import annotations

from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from medisee.errors import InputError
from medisee.io import read_image
from medisee.structures import MedicalImage

__all__ = ["Example", "example_path", "list_examples", "open_example"]


@dataclass(frozen=True)
class Example:
    """A real image and a question about something that can be seen in it.

    file: its name among pydicom's test files; modality and body_part: in the words of the
    training data's index where it has one.
    """

    name: str
    file: str
    description: str
    question: str
    modality: str
    body_part: str


_EXAMPLES = (
    Example(
        name="abdomen-mr",
        file="examples_overlay.dcm",
        description="axial MR of the upper abdomen with liver, both kidneys, aorta and spine",
        question="Which large organ here makes bile and breaks down poisons?",
        modality="MR",
        body_part="abdomen",
    ),
    Example(
        name="spine-ct",
        file="CT_small.dcm",
        description="axial CT around a thoracic vertebra, with the aorta in front of it",
        question="Which vessel carries blood from the heart down to the belly and legs?",
        modality="CT",
        body_part="torso",
    ),
    Example(
        name="head-ct",
        file="J2K_pixelrep_mismatch.dcm",
        description="axial CT through the base of the skull, brainstem and cerebellum",
        question="Which part joins the brain to the spinal cord and keeps us breathing?",
        modality="CT",
        body_part="head and neck",
    ),
    Example(
        name="heart-ultrasound",
        file="examples_ybr_color.dcm",
        description="apical ultrasound of the beating heart, 30 frames, all four chambers",
        question="Which chamber pumps the blood out to the whole body?",
        modality="ultrasound",
        body_part="heart",
    ),
    Example(
        name="lymph-node-ultrasound",
        file="examples_rgb_color.dcm",
        description="power Doppler ultrasound of an enlarged lymph node",
        question="Where is the bean-shaped station that filters lymph and swells in an infection?",
        modality="ultrasound",
        body_part="lymph node",
    ),
    Example(
        name="bone-scan",
        file="JPEG2000.dcm",
        description="nuclear medicine scan of the whole skeleton from the front, coarse",
        question="Where does the tracer gather before it leaves the body with the urine?",
        modality="nuclear medicine",
        body_part="whole body",
    ),
)


def list_examples() -> list[Example]:
    """All examples, the best one for a first try first."""
    return list(_EXAMPLES)


def example_path(name: str) -> Path:
    """The file of an example; InputError when there is none of this name, or no file."""
    from pydicom.data import get_testdata_file

    files = {example.name: example.file for example in _EXAMPLES}
    if name not in files:
        near = get_close_matches(name, files, n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(files)}"
        raise InputError(f"there is no example of that name; {hint}")
    path = get_testdata_file(files[name], download=False)
    if path is None:
        raise InputError(
            f"example:{name}: the installed pydicom carries no test files; name a file of your own"
        )
    return Path(str(path))


def open_example(name: str) -> MedicalImage:
    """Read an example, as `read_image("example:NAME")` does."""
    return read_image(f"example:{name}")
