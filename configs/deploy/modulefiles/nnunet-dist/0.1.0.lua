-- Lmod: `module load nnunet-dist`. Set `root` to where bin/ and share/ are, as of `make install PREFIX=` or of an unpacked
-- package, or set NNUNET_DIST_ROOT.

local root = os.getenv("NNUNET_DIST_ROOT") or "/opt/nnunet-dist/0.1.0"

help([[
nnU-Net, trained across many GPUs and nodes.

  nnunet-dist doctor        what this machine has
  nnunet-dist --help        the commands
  nnunet-launch --help      the launcher
]])
whatis("Name: nnunet-dist")
whatis("Version: 0.1.0")
whatis("Category: machine learning, medical imaging")
whatis("Description: nnU-Net, trained across many GPUs and nodes")

conflict("nnunet-dist")
-- The MPI that the program was built with, under the name that it has here.
-- depends_on("openmpi/4.1")

prepend_path("PATH", pathJoin(root, "bin"))
setenv("NNUNET_DIST_HOME", pathJoin(root, "share/nnunet-dist"))
