from natix_hf.cli import main

main()
