console.error('cannot open the database');
process.exit(7);
