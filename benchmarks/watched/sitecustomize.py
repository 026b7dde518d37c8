"""Every process of Python that finds this notes which files it opens and whom it connects to, in the file WATCHED."""

import os
import sys

EVENTS = {"open", "socket.connect", "socket.getaddrinfo", "os.listdir", "os.system", "subprocess.Popen", "os.exec"}

if os.environ.get("WATCHED"):
    _file = os.open(os.environ["WATCHED"], os.O_WRONLY | os.O_APPEND)

    def _note(event, arguments):
        if event in EVENTS:
            os.write(_file, f"{event} {arguments[:2]!r}\n".encode("ascii", "backslashreplace"))

    sys.addaudithook(_note)
