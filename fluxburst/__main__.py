from fluxburst.cli import main

main()
