-- Lmod: `module load nnunet-dist`. Set `root` to the folder that contains bin/ and share/ (the PREFIX of `make install`, or
-- an unpacked package), or set NNUNET_DIST_ROOT.

local root = os.getenv("NNUNET_DIST_ROOT") or "/opt/nnunet-dist/0.1.0"

help([[
nnU-Net, trained across many GPUs and nodes.

  nnunet-dist doctor        libraries and devices of this machine
  nnunet-dist --help        the commands
  nnunet-launch --help      the launcher
]])
whatis("Name: nnunet-dist")
whatis("Version: 0.1.0")
whatis("Category: machine learning, medical imaging")
whatis("Description: nnU-Net, trained across many GPUs and nodes")

conflict("nnunet-dist")
-- The MPI module that the program was built with; replace its name with the local one.
-- depends_on("openmpi/4.1")

prepend_path("PATH", pathJoin(root, "bin"))
setenv("NNUNET_DIST_HOME", pathJoin(root, "share/nnunet-dist"))
