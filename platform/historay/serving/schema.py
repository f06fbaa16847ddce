"""What the endpoint answers, as pydantic models that the server fills and the client reads."""

from pydantic import BaseModel, ConfigDict

from historay.serving.limits import MAX_EXPLAINED


class _Answer(BaseModel):
    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)


class InputReason(_Answer):
    """One thing about an image for which its answer should not be relied on."""

    code: str
    """Short code: blank, not-he, unlike-training, blurred or pen."""
    detail: str
    """What was found, with the figures."""


class InputCheck(_Answer):
    """What the input gate says of an image, by limits that were fixed on the validation split."""

    accepted: bool
    """Whether the image is one that the model can be asked about."""
    reasons: tuple[InputReason, ...]
    """Why it is not; none where it is."""


class ImagePrediction(_Answer):
    """The model's answer on one image."""

    index: int
    """Position of the image in the request, from 0."""
    sha256: str
    """Digest of the image's bytes as they were received."""
    label: str
    """The class: at the operating point where the model has one, else the most probable."""
    probabilities: dict[str, float]
    """Probability of each class; they sum to 1."""
    prediction_set: tuple[str, ...] | None
    """The classes that the model's conformal rule does not rule out; None where the bundle has no rule."""
    abstain: bool | None
    """Whether the label should not be relied on: the set is not a single class, or the input gate did not accept the image.

    None where the gate accepted the image, or there is none, and the bundle has no prediction sets.
    """
    abstain_reason: str | None = None
    """Why, in words; None where it does not abstain."""
    input: InputCheck | None = None
    """What the input gate says; None where the bundle has no gate."""
    heatmap_png: str | None = None
    """With ``explain=true``: base64 of a PNG whose opacity is the evidence for the label (Grad-CAM), to lie over the image."""
    heatmap_missing: str | None = None
    """With ``explain=true``: why there is no heat map, in words; None where there is one."""


class Refusal(_Answer):
    """Why one image could not be used."""

    reason: str
    """Short code, e.g. truncated."""
    detail: str
    """What is wrong, with the figures."""


class ImageRefusal(_Answer):
    """One image that could not be used; its neighbours are answered all the same."""

    index: int
    """Position of the image in the request, from 0."""
    error: Refusal
    """Why it was refused."""


Result = ImagePrediction | ImageRefusal


class OperatingThreshold(_Answer):
    """The rule that turns a binary model's probability into its label."""

    positive_class: str
    """The class whose probability is compared."""
    threshold: float
    """The label is the positive class at this probability and above; chosen on the validation split."""


class PredictAnswer(_Answer):
    """Answer of POST /v1/predict: one result per image, in the order of the request."""

    model: str
    """The model's name@version."""
    dataset: str
    """The data set that it was trained on, name@version."""
    dataset_digest: str
    """SHA-256 of that data set."""
    request_id: str
    """Names this request in the server's log."""
    operating_point: OperatingThreshold | None
    """None where labels are the most probable class."""
    results: tuple[Result, ...]
    """One per image."""


class RequestLimits(_Answer):
    """What one request may hold."""

    max_files: int
    """Images in one request."""
    max_body_bytes: int
    """Bytes of the whole request."""
    max_image_bytes: int
    """Bytes of one encoded image."""
    max_pixels: int
    """Pixels of one decoded image, width times height."""
    max_explained: int = MAX_EXPLAINED
    """Images in one request with ``explain=true``."""


class ModelAnswer(_Answer):
    """Answer of GET /v1/model: which model answers here, and from what it was made."""

    model: str
    """The model's name@version."""
    architecture: str
    """Network, by its name in the zoo."""
    classes: tuple[str, ...]
    """Class names, in the order of the model's outputs."""
    input_px: int
    """Side that each image is resized to, pixels."""
    mpp: float | None
    """Micrometres per pixel of the training tiles; None: unknown or mixed."""
    operating_point: OperatingThreshold | None
    """None where labels are the most probable class."""
    runtime: str
    """What runs the network here, e.g. openvino-bf16."""
    tolerance: float
    """How far a probability may be from torch in fp32; a runtime beyond it on the bundle's probe tiles is refused."""
    calibration: str
    """The map from the network's probabilities to those answered, fitted on the validation split."""
    prediction_sets: str | None
    """What the prediction sets promise, and on what condition; None where the bundle has no rule."""
    dataset: str
    """The data set that it was trained on, name@version."""
    dataset_digest: str
    """SHA-256 of that data set."""
    accepted_leaks: tuple[str, ...]
    """Kinds of leak between the splits that were accepted by name when it was trained."""
    created: str
    """When the bundle was made, ISO 8601, UTC."""
    notice: str = "Research software: not a medical device."
    """What this is not."""
    limits: RequestLimits
    """What one request may hold."""


class Status(_Answer):
    """Answer of /healthz and /readyz."""

    status: str
    """ok, or what is still missing."""


class Problem(_Answer):
    """An RFC 9457 problem, sent as application/problem+json."""

    type: str = "about:blank"
    """Always about:blank: ``reason`` carries the meaning."""
    title: str
    """The HTTP status in words."""
    status: int
    """The HTTP status."""
    detail: str
    """What is wrong and how to mend it."""
    reason: str
    """Short code, e.g. too-many-files, or the reason of a refused image."""
    request_id: str
    """Names this request in the server's log."""
    results: tuple[ImageRefusal, ...] = ()
    """One per image, where every image of the request was refused."""
