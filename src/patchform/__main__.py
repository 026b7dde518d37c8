"""python -m patchform"""

from patchform.cli import main

raise SystemExit(main())
