"""The rival LitServe of `serving_rivals.py`, in a file of its own since its classes go to other processes."""

from base64 import b64decode

import litserve as ls

import patchform as pf


class Pictures(ls.LitAPI):
    """A picture in base64 in, the record of `patchform predict` out; batches by time."""

    run = ""

    def setup(self, device):
        self.predictor = pf.load(self.run)

    def decode_request(self, request):
        return b64decode(request["picture"])

    def batch(self, inputs):
        return inputs

    def predict(self, contents):
        return [one.as_json() for one in self.predictor.predict(contents)]

    def unbatch(self, output):
        return output

    def encode_response(self, output):
        return output


def serve(run, port, batch, patience):
    api = Pictures(max_batch_size=batch, batch_timeout=patience)
    api.run = str(run)
    server = ls.LitServer(api, accelerator="cpu", workers_per_device=1)
    server.run(host="127.0.0.1", port=port, generate_client_file=False, num_api_servers=1, log_level="critical")
