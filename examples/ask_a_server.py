"""What a server says of pictures: python examples/ask_a_server.py http://127.0.0.1:8000 a.jpg b.jpg

Of a server with a token: PATCHFORM_TOKEN=... python examples/ask_a_server.py ...
"""

import json
import os
import sys
import time
from urllib.error import HTTPError
from urllib.request import Request, urlopen


def ask(address, content):
    headers = {
        "Content-Type": "application/octet-stream",
        "Authorization": f"Bearer {os.environ.get('PATCHFORM_TOKEN')}",
    }
    for _ in range(5):
        try:
            with urlopen(Request(f"{address}/predict", content, headers), timeout=60) as answer:
                return json.load(answer)
        except HTTPError as error:
            if error.code != 503:  # a picture that it cannot use, or too large: what is wrong, in words
                return json.load(error)
            time.sleep(float(error.headers.get("Retry-After", 1)))
    return {"message": "the server is busy"}


for path in sys.argv[2:] or print(__doc__) or ():
    with open(path, "rb") as file:
        print(path, json.dumps(ask(sys.argv[1], file.read())))
