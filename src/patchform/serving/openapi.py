"""What OpenAPI tells beyond what signatures say: bodies, and examples of all answers."""

from __future__ import annotations

from typing import Any

_BYTES = {"schema": {"type": "string", "format": "binary"}}
_FORM = {
    "schema": {
        "type": "object",
        "required": ["file"],
        "properties": {"file": {"type": "array", "items": {"type": "string", "format": "binary"}}},
    }
}
_BODY = {
    "required": True,
    "description": "A picture, or a film for a model of films; in a form several, as fields called file.",
    "content": {
        "image/*": _BYTES,
        "video/*": _BYTES,
        "application/octet-stream": _BYTES,
        "multipart/form-data": _FORM,
    },
}
_SIZE = [480, 640]
_OBJECT = {"name": "cat", "class_id": 0, "box": [12.5, 30.1, 200.0, 180.4], "score": 0.971}
_RUNS = {"size": _SIZE, "counts": "eW02n<0O2M3N1O1"}
_ANSWERS: dict[str, Any] = {
    "one label": {
        "label": "cat",
        "score": 0.93,
        "top": [{"label": "cat", "score": 0.93}, {"label": "dog", "score": 0.05}],
        "size": _SIZE,
    },
    "several labels": {"labels": ["cat", "grass"], "top": [{"label": "cat", "score": 0.93}], "size": _SIZE},
    "boxes": {"objects": [_OBJECT], "size": _SIZE},
    "boxes and masks": {"objects": [_OBJECT | {"segmentation": _RUNS}], "size": _SIZE},
    "regions": {"shares": {"road": 0.61, "sky": 0.39}, "size": _SIZE},
    "regions, files=true": {
        "shares": {"road": 0.61, "sky": 0.39},
        "size": _SIZE,
        "files": {"classes.png": "iVBORw0KGgo="},
    },
    "a form": {
        "answers": [
            {"label": "cat", "score": 0.93, "top": [{"label": "cat", "score": 0.93}], "size": _SIZE},
            {"error": {"code": "bad_picture", "message": "cut short; send the whole file"}},
        ]
    },
}
_ERRORS = {
    400: ("bad_picture", "No picture, or a damaged one"),
    401: ("no_token", "The token is missing or wrong"),
    413: ("too_large", "More bytes or pictures than the server takes"),
    415: ("wrong_type", "Neither a picture nor a form"),
    422: ("bad_field", "An option that there is not, or one out of range"),
    503: ("busy", "Too many wait, or the model is being started again: try again after Retry-After seconds"),
}


def _error(code: str, description: str) -> dict[str, Any]:
    example = {"code": code, "message": "what is wrong, and what to do", "request": "5f1d6c0a9b3e4c77"}
    return {"description": description, "content": {"application/json": {"example": example}}}


PREDICT: dict[str, Any] = {
    "openapi_extra": {"requestBody": _BODY},
    "responses": {
        200: {
            "description": "The answer: boxes are x, y, width, height in pixels of the picture, masks run lengths as "
            "COCO writes them, files base64.",
            "content": {"application/json": {"examples": {name: {"value": value} for name, value in _ANSWERS.items()}}},
        },
        **{status: _error(*of) for status, of in _ERRORS.items()},
    },
}
"""Arguments of FastAPI's `post`."""
